"""A client's DEALER socket: its options, and which form of pyzmq this process needs."""

from __future__ import annotations

import sys
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


def zmq_for_this_process() -> Any:
    """pyzmq, or its gevent form where gevent has replaced threads: a plain socket would stop every greenlet."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        from zmq import green

        return green
    return zmq
