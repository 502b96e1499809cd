"""Whole messages through pyzmq's compiled layer: its Python layer spends more on a frame than libzmq does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import zmq
from zmq.backend import Socket as CompiledSocket

if TYPE_CHECKING:
    from gpu_server.wire.tensor import Buffer

_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_get: Any = CompiledSocket.get
_recv: Any = CompiledSocket.recv
_send: Any = CompiledSocket.send


def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    """The frames of the next message; raises zmq.Again when there is none."""
    return receive_with_last(socket)[0]


def receive_with_last(
    socket: zmq.Socket[bytes], most_frames: int = sys.maxsize, most_bytes: int = sys.maxsize
) -> tuple[list[bytes], zmq.Frame, bool]:
    """The frames of the next message, the last as pyzmq's object, which knows its connection, and whether it is whole.

    A message beyond `most_frames` or `most_bytes` is read to its end, but only its first frames are kept. The very first
    is an identity or a delimiter, which always has another behind it.
    """
    frames: list[bytes] = [_recv(socket, _NOBLOCK)]
    frame: Any = _recv(socket, _NOBLOCK, False)
    frames.append(frame.bytes)
    size = 0
    while frame.more:
        frame = _recv(socket, _NOBLOCK, False)
        size += len(frame)
        if len(frames) < most_frames and size <= most_bytes:
            frames.append(frame.bytes)
        else:
            most_frames = 0
    return frames, frame, most_frames > 0


def send(socket: zmq.Socket[bytes], frames: Sequence[Buffer | zmq.Frame], copy: bool = True) -> None:
    """Send a message without waiting; raises zmq.Again when the pipe is full, before any frame has gone.

    copy: False lends large frames to libzmq, which must not change until they have left.
    """
    for frame in frames[:-1]:
        _send(socket, frame, _NOBLOCK_MORE, copy)
    _send(socket, frames[-1], _NOBLOCK, copy)


def waits(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message can be received. To be asked before sleeping on the socket's descriptor, which sending may reset."""
    return bool(_get(socket, _EVENTS) & _POLLIN)


def descriptor(socket: zmq.Socket[bytes]) -> int:
    """What becomes readable when a message may have come; its reader then reads the socket until it is empty."""
    return int(_get(socket, int(zmq.FD)))
