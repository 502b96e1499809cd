"""The options of a client's DEALER socket."""

from __future__ import annotations

from typing import Any

import zmq

RECONNECT_MS = 10, 250
"""Pause before the first try to connect again, and the longest one."""


def configure(socket: Any) -> None:
    """Set what a connection relies on: unbounded queues, nothing queued without a connection, a lost peer is noticed."""
    socket.linger = 0
    socket.sndhwm = 0
    socket.rcvhwm = 0
    socket.setsockopt(zmq.IMMEDIATE, 1)
    first_ms, longest_ms = RECONNECT_MS
    socket.setsockopt(zmq.RECONNECT_IVL, first_ms)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, longest_ms)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6000)
