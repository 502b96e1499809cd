"""Identities of connections: those that libzmq gives, which nobody foresees, and those that clients chose."""

from __future__ import annotations

import ctypes
import os

_GIVEN_BYTES = 5


def seed() -> None:
    """Let libzmq give identities that nobody foresees; to be called before its first ROUTER socket is made.

    They count up from a number of rand(3), which libzmq 4.3.5 does not seed in every build: the first would be the same in
    every process. A client may choose any, and one that has the next to be given ends the process by an assertion
    (`routing_socket_base_t::add_out_pipe`).
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4)))


def is_given(identity: bytes) -> bool:
    """Whether an identity has the form of those that libzmq gives: a zero and four bytes (ZMQ_ROUTER in zmq_socket(3))."""
    return len(identity) == _GIVEN_BYTES and identity[0] == 0
