"""What libzmq gives differs from process to process and is told from what clients choose."""

from __future__ import annotations

import subprocess
import sys

import pytest
import zmq

from gpu_server.daemon import identities

FIRST = """
import sys, zmq
from gpu_server.daemon import identities
if sys.argv[1] == "seeded":
    identities.seed()
with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
    router.bind("inproc://router")
    dealer.connect("inproc://router")
    dealer.send(b"")
    print(router.recv().hex())
"""


def first_given(how: str) -> bytes:
    """The first identity that a process gives."""
    command = [sys.executable, "-c", FIRST, how]
    return bytes.fromhex(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout.decode())


def test_nobody_foresees_what_is_given() -> None:
    given = {first_given("seeded") for _ in range(3)}
    assert len(given) == 3
    assert all(map(identities.is_given, given))


@pytest.mark.parametrize("chosen", [b"name", b"\0", b"\0own", b"\0longer", b"abcde"])
def test_what_a_client_chose_is_told_from_it(chosen: bytes) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        router.bind("inproc://router")
        dealer.linger, dealer.routing_id = 0, chosen
        dealer.connect("inproc://router")
        dealer.send(b"")
        assert router.poll(5000)
        assert router.recv_multipart()[0] == chosen
    assert not identities.is_given(chosen)
