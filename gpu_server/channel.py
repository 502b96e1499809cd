"""Whole messages over a stream socket between two processes: no thread in between, and no wait that was not asked for."""

from __future__ import annotations

import select
import socket as sockets
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

import numpy as np

from gpu_server.errors import ProtocolError
from gpu_server.wire import Buffer

MAX_FRAMES = 34
"""Delimiter, header and two frames for each of 16 tensors."""
MAX_BYTES = 1 << 34
SEND_BUFFER = 1 << 22
"""Bytes the kernel takes before the other end reads, where it may: a batch goes at once, whatever that end does."""
_HEAD = struct.Struct(f"<{1 + MAX_FRAMES}Q")
"""What stands before each message: the number of its frames, and their sizes."""


class Channel:
    """One end of a connected stream socket.

    closed: the other end is gone, and all that it had sent has been read. What is sent to it is dropped.
    """

    def __init__(self, socket: sockets.socket) -> None:
        socket.setblocking(False)
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER)
        self.closed = False
        self._socket = socket
        self._unsent: deque[memoryview] = deque()
        self._head = bytearray(_HEAD.size)
        self._frames: list[memoryview] = []
        self._unread = deque([memoryview(self._head)])

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether something is left to send; `receive` goes on with it."""
        return bool(self._unsent)

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send a message; what the other end has no room for follows with later calls, and must not change until then."""
        sizes = [len(frame) for frame in frames]
        head = _HEAD.pack(len(sizes), *sizes, *[0] * (MAX_FRAMES - len(sizes)))
        self._unsent += map(memoryview, (head, *frames))
        self._flush()

    def receive(self, *, wait: bool = False) -> list[memoryview] | None:
        """The frames of the next message, read-only; None while it is not here in whole, and once the other end is gone.

        Raises ProtocolError on what is no message; nothing can be read after it.
        """
        self._flush()
        while self._fill(wait):
            frames, self._frames = self._frames, []
            if frames:
                self._unread.append(memoryview(self._head))
                # A batch that fails is run again, in parts: what a model does to its inputs must not stay.
                return [frame.toreadonly() for frame in frames]
            self._frames = self._announced()
            self._unread += self._frames
            _advance(self._unread, 0)
        return None

    def close(self) -> None:
        """Close this end; what has not been sent is dropped."""
        self._socket.close()

    def _fill(self, wait: bool) -> bool:
        """Read all that is due next; False while not all of it has come."""
        while self._unread:
            try:
                count = self._socket.recvmsg_into(self._unread)[0]
            except BlockingIOError:
                if not wait:
                    return False
                self._wait()
                continue
            except OSError:
                count = 0
            if not count:
                self.closed = True
                return False
            _advance(self._unread, count)
        return True

    def _announced(self) -> list[memoryview]:
        """Room for the frames of the message whose head has been read."""
        count, *sizes = _HEAD.unpack(self._head)
        if not 2 <= count <= MAX_FRAMES or sum(sizes) > MAX_BYTES:
            raise ProtocolError("a message is [empty] [header] [frame …]")
        return [np.empty(size, np.uint8).data for size in sizes[:count]]

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN)
        poll.poll()
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            try:
                _advance(self._unsent, self._socket.sendmsg(islice(self._unsent, 1 + MAX_FRAMES)))
            except BlockingIOError:
                return
            except OSError:
                # After a part of a message nothing can follow: both ends see the end.
                self._unsent.clear()
                with suppress(OSError):
                    self._socket.shutdown(sockets.SHUT_RDWR)


def _advance(parts: deque[memoryview], count: int) -> None:
    """Drop the first `count` bytes, and what is empty behind them."""
    while parts and count >= len(parts[0]):
        count -= len(parts.popleft())
    if count:
        parts[0] = parts[0][count:]
