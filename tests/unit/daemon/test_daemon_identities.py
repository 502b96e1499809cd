"""What libzmq gives differs from process to process."""

from __future__ import annotations

import subprocess
import sys

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


def first_given(how: str) -> str:
    """The first identity that a process gives."""
    command = [sys.executable, "-c", FIRST, how]
    return subprocess.run(command, check=True, capture_output=True, timeout=60, text=True).stdout.strip()


def test_nobody_foresees_what_is_given() -> None:
    assert len({first_given("seeded") for _ in range(3)}) == 3


def test_without_a_seed_it_is_the_same_in_every_process() -> None:
    """What `FORESEEN` in `test_faults_peers.py` stands on; if this fails, libzmq seeds and we need not."""
    assert {first_given("as it is") for _ in range(2)} == {"006b8b4567"}
