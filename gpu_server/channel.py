"""Whole messages over a stream socket between two processes: no thread in between, and no wait that was not asked for."""

from __future__ import annotations

import select
import socket as sockets
import struct
from collections import deque
from collections.abc import Iterable, Sequence
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
READ_BUFFER = 1 << 15
"""Bytes read at a time: many small messages, or the beginning of a large one, whose frames are read to where they stay."""
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
        self._broken = False
        self._socket = socket
        self._unsent: deque[memoryview] = deque()
        self._buffer = memoryview(bytearray(READ_BUFFER))
        self._at = self._end = 0
        self._sizes: deque[int] = deque()
        self._frames: list[Buffer] = []
        self._rest = memoryview(b"")
        self._drained = False

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
        parts = (_HEAD.pack(len(sizes), *sizes, *[0] * (MAX_FRAMES - len(sizes))), *frames)
        self._flush()
        taken = 0 if self._unsent else self._push(parts)
        if taken < _HEAD.size + sum(sizes) and not self._broken:
            self._unsent += map(memoryview, parts)
            _advance(self._unsent, taken)

    def receive(self, *, wait: bool = False) -> list[Buffer] | None:
        """The frames of the next message, read-only; None while it is not here in whole, and once the other end is gone.

        Raises ProtocolError on what is no message; nothing can be read after it.
        """
        self._flush()
        while not self._complete():
            if self._drained and not wait:
                # Whoever polls is told when there is more: asking would cost a system call.
                self._drained = False
                return None
            if not self._read(wait):
                return None
        frames, self._frames = self._frames, []
        return frames

    def close(self) -> None:
        """Close this end; what has not been sent is dropped."""
        self._socket.close()

    def _complete(self) -> bool:
        """Take frames out of what has been read; whether they are a whole message."""
        if not self._frames and not self._sizes and self._end - self._at >= _HEAD.size:
            self._begin()
        while self._sizes and not self._rest:
            size, here = self._sizes[0], self._end - self._at
            if here >= size:
                self._frames.append(bytes(self._buffer[self._at : self._at + size]))
                self._at += size
            elif size > READ_BUFFER:
                self._begin_large(size)
            else:
                return False
            self._sizes.popleft()
        return bool(self._frames) and not self._rest

    def _begin(self) -> None:
        """Learn the sizes of the next message's frames."""
        count, *sizes = _HEAD.unpack_from(self._buffer, self._at)
        if not 2 <= count <= MAX_FRAMES or sum(sizes) > MAX_BYTES:
            raise ProtocolError("a message is [empty] [header] [frame …]")
        self._sizes.extend(sizes[:count])
        self._at += _HEAD.size

    def _begin_large(self, size: int) -> None:
        """Give a frame that the buffer cannot hold its own memory, and let the rest of it be read to there."""
        room = np.empty(size, np.uint8).data
        here = self._end - self._at
        room[:here] = self._buffer[self._at : self._end]
        self._at = self._end = 0
        self._rest = room[here:]
        # A batch that fails is run again, in parts: what a model does to its inputs must not stay.
        self._frames.append(room.toreadonly())

    def _read(self, wait: bool) -> bool:
        """Read what is due next, or as much of it as has come; False if nothing has."""
        if not self._rest:
            left = self._end - self._at
            self._buffer[:left] = self._buffer[self._at : self._end]
            self._at, self._end = 0, left
        room = self._rest or self._buffer[self._end :]
        try:
            count = self._socket.recv_into(room)
        except BlockingIOError:
            if wait:
                self._wait()
            return wait
        except OSError:
            count = 0
        if not count:
            self.closed = True
            return False
        self._drained = count < len(room)
        if self._rest:
            self._rest = room[count:]
        else:
            self._end += count
        return True

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN)
        poll.poll()
        self._flush()

    def _flush(self) -> None:
        while self._unsent and (taken := self._push(islice(self._unsent, 1 + MAX_FRAMES))):
            _advance(self._unsent, taken)

    def _push(self, parts: Iterable[Buffer]) -> int:
        """Give the kernel what it takes, and return how many bytes that was."""
        try:
            return self._socket.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError:
            # After a part of a message nothing can follow: both ends see the end.
            self._broken = True
            self._unsent.clear()
            with suppress(OSError):
                self._socket.shutdown(sockets.SHUT_RDWR)
            return 0


def _advance(parts: deque[memoryview], count: int) -> None:
    """Drop the first `count` bytes, and what is empty behind them."""
    while parts and count >= len(parts[0]):
        count -= len(parts.popleft())
    if count:
        parts[0] = parts[0][count:]
