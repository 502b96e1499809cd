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

from gpu_server import shared_frames
from gpu_server.errors import ProtocolError
from gpu_server.wire import Buffer

MAX_FRAMES = 34
"""Delimiter, header and two frames for each of 16 tensors."""
MAX_BYTES = 1 << 34
SEND_BUFFER = 1 << 22
"""Bytes the kernel takes before the other end reads, where it may: a batch goes at once, whatever that end does."""
READ_BUFFER = 1 << 15
"""Bytes read at a time: many small messages, or the beginning of a large one, whose frames are read to where they stay."""
_HEAD = struct.Struct(f"<{2 + MAX_FRAMES}Q")
"""What stands before each message: how many shared frames its sender has done with, the number of frames, their sizes."""
_SHARED = 1 << 63
_PLACE = 32
"""A frame in shared memory has this bit in its size, and from `_PLACE` on where it lies."""


class Channel:
    """One end of a connected stream socket.

    shared: memory for large frames, if the other end has the same. closed: the other end is gone, and all that it had sent
    has been read. What is sent to it is dropped.
    """

    def __init__(self, socket: sockets.socket, shared: shared_frames.Ends | None = None) -> None:
        socket.setblocking(False)
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER)
        self.closed = False
        self._broken = False
        self._socket = socket
        self._writer, self._reader = shared or shared_frames.none()
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
        sizes, inline = [], []
        for frame in frames:
            place = self._share(frame)
            sizes.append(len(frame) if place is None else len(frame) | place << _PLACE | _SHARED)
            if place is None:
                inline.append(frame)
        head = (self._reader.freed(), len(sizes), *sizes, *[0] * (MAX_FRAMES - len(sizes)))
        parts = (_HEAD.pack(*head), *inline)
        self._flush()
        taken = 0 if self._unsent else self._push(parts)
        if taken < sum(map(len, parts)) and not self._broken:
            self._unsent += map(memoryview, parts)
            _advance(self._unsent, taken)

    def receive(self, *, wait: bool = False) -> list[Buffer] | None:
        """The frames of the next message, read-only; None while it is not here in whole, and once the other end is gone.

        A large one may lie in shared memory, whose place is lent for as long as anything refers to it or a part of it.
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
            if size & _SHARED:
                place, size = divmod(size ^ _SHARED, 1 << _PLACE)
                self._frames.append(self._reader.take(place, size))
            elif here >= size:
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
        freed, count, *sizes = _HEAD.unpack_from(self._buffer, self._at)
        if not 2 <= count <= MAX_FRAMES or sum([size for size in sizes if not size & _SHARED]) > MAX_BYTES:
            raise ProtocolError("a message is [empty] [header] [frame …]")
        self._writer.freed(freed)
        self._sizes.extend(sizes[:count])
        self._at += _HEAD.size

    def _share(self, frame: Buffer) -> int | None:
        """Leave a frame that the other end's buffer cannot hold in shared memory, if there is room; returns where."""
        return self._writer.put(frame) if READ_BUFFER < len(frame) < 1 << _PLACE else None

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
