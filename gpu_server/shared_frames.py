"""Large frames in memory that two processes share: one writes them there, the other reads them where they lie."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket as sockets
import weakref
from collections import deque
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from gpu_server.errors import ProtocolError
from gpu_server.wire import Buffer

BYTES = 1 << 23
"""Of each direction: the answers of some batches, few enough to stay in a processor's cache."""
ALIGNED = 64
_NONE, _SENT = b"\0", b"\1"
"""What the other end is told: whether memory comes with it."""
Memory = NDArray[np.uint8]


class Writer:
    """The end that writes: frame behind frame, again from the beginning once its readers have let go of what is there."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._lent: deque[tuple[int, int]] = deque()

    def put(self, frame: Buffer) -> int | None:
        """Copy a frame, which is not empty; where it is now, or None while there is no room for it."""
        data = np.frombuffer(frame, np.uint8)
        at = self._room(-(-len(data) // ALIGNED) * ALIGNED)
        if at is not None:
            self._memory[at : at + len(data)] = data
        return at

    def freed(self, count: int) -> None:
        """Use the room of the `count` oldest frames again; raises ProtocolError if there are fewer."""
        if count > len(self._lent):
            raise ProtocolError(f"{count} shared frames are given back where {len(self._lent)} are lent")
        for _ in range(count):
            self._lent.popleft()

    def _room(self, size: int) -> int | None:
        """Take `size` bytes in one piece: behind the newest frame, or before the oldest."""
        if not self._lent:
            at, end = 0, len(self._memory)
        else:
            at, end = self._lent[-1][1], self._lent[0][0]
            if at > end:
                at, end = (at, len(self._memory)) if at + size <= len(self._memory) else (0, end)
        if at + size > end:
            return None
        self._lent.append((at, at + size))
        return at


class Reader:
    """The end that reads. A frame's place is given back when nothing refers to the frame or a part of it any more."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory.data.toreadonly()
        self._lent: deque[weakref.ref[Memory]] = deque()

    def take(self, at: int, size: int) -> memoryview:
        """The frame at a place, read-only; raises ProtocolError if it is empty or beyond the end."""
        if not size or at + size > len(self._memory):
            raise ProtocolError(f"a shared frame of {size} bytes at {at} exceeds {len(self._memory)}")
        # Every view of it, and every array made from one, refers to this array, and not to the memory itself.
        frame = np.frombuffer(self._memory[at : at + size], np.uint8)
        self._lent.append(weakref.ref(frame))
        return frame.data

    def freed(self) -> int:
        """How many of the oldest frames have been let go of since this was asked last."""
        count = 0
        while self._lent and self._lent[0]() is None:
            self._lent.popleft()
            count += 1
        return count


Ends = tuple[Writer, Reader]


def none() -> Ends:
    """Ends without any memory: no frame finds room."""
    return Writer(np.empty(0, np.uint8)), Reader(np.empty(0, np.uint8))


def offer(socket: sockets.socket) -> Ends:
    """Make memory for both directions, if there is any, and send it to the other end, which must `accept`."""
    with ExitStack() as stack:
        try:
            file = os.memfd_create("gpu-server", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            stack.callback(os.close, file)
            # Now, because a page that is not to be had later ends a process; and neither end may take one back.
            os.posix_fallocate(file, 0, 2 * BYTES)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            ours, theirs = _halves(file)
        except (OSError, AttributeError):
            socket.sendall(_NONE)
            return none()
        sockets.send_fds(socket, [_SENT], [file])
    return Writer(ours), Reader(theirs)


def accept(socket: sockets.socket) -> Ends:
    """Take what the other end offers. Raises OSError if it does not arrive or cannot be mapped: both must have the same."""
    told, files, _, _ = sockets.recv_fds(socket, 1, 1)
    if told != _SENT:
        return none()
    if not files:
        raise OSError("the descriptor of the shared memory was lost on its way")
    try:
        theirs, ours = _halves(files[0])
    finally:
        os.close(files[0])
    return Writer(ours), Reader(theirs)


def _halves(file: int) -> tuple[Memory, Memory]:
    """The memory of each direction."""
    both = np.frombuffer(mmap.mmap(file, 2 * BYTES), np.uint8)
    return both[:BYTES], both[BYTES:]
