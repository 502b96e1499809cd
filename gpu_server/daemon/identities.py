"""The identities that libzmq gives to connections: they begin at a random number."""

from __future__ import annotations

import ctypes
import os


def seed() -> None:
    """Seed what libzmq draws its first identity from; to be called before its first ROUTER socket is made.

    They count up from a number of rand(3), which libzmq 4.3.5 does not seed: it would be the same in every process. A client
    may choose any identity, and one that has the next to be given ends the process by an assertion
    (`routing_socket_base_t::add_out_pipe`).
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4)))
