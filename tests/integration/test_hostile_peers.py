"""A running daemon under garbage: mutated messages, random frames, raw bytes; a good client must not notice."""

from __future__ import annotations

import random
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq
from fault_world import cpu_s, rss_bytes
from hostile_world import Frames, drain, flood, good_messages
from running_daemon import ROOT, RunningDaemon, until

from gpu_server.client import Client
from gpu_server.wire import RequestHeader, Tensor, encode_request

pytestmark = pytest.mark.slow

MESSAGES = 20_000
BOMB_BYTES = 1 << 20
PICKLE = b"cos\nsystem\n(S'exit 1'\ntR."
AUDIT = """
import os, sys

def hook(event, arguments):
    if event == "pickle.find_class":
        with open(os.environ["AUDIT"], "a") as found:
            found.write(f"{os.getpid()}\\n")

sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def audit() -> Iterator[Path]:
    """Where each process of the daemon notes its id when it looks a name up for a pickle."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(AUDIT)
        yield Path(folder) / "found"


@pytest.fixture(scope="module")
def running(audit: Path) -> Iterator[RunningDaemon]:
    """One daemon for all these tests."""
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        path = f"{audit.parent}:{ROOT}"
        made = RunningDaemon(f"ipc://{folder}/s", "served_models:Numbers", PYTHONPATH=path, AUDIT=str(audit))
        try:
            yield made.wait_ready()
        finally:
            made.kill()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


class GoodClient:
    """Asks all the time, in a thread of its own."""

    def __init__(self, endpoint: str) -> None:
        self.client = Client(endpoint, timeout_s=20)
        self.answers = 0
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def _run(self) -> None:
        while not self._stop.is_set():
            value = self.answers
            got = self.client.infer("Numbers", x=[value, -value])["y"].tolist()  # type: ignore[union-attr]
            assert got == [2 * value + 1, 1 - 2 * value]
            self.answers += 1

    def __enter__(self) -> GoodClient:
        self._future = self._pool.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._future.result(30)
        self._pool.shutdown()
        self.client.close()


def raw_bytes(path: str, dice: random.Random) -> None:
    """A connection that speaks something else, or ZMTP that turns into something else."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(path)
        if dice.random() < 0.7:
            raw.sendall(greeting[: dice.choice([1, 10, 33, 64])])
        if dice.random() < 0.7:
            raw.sendall(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER")
        try:
            raw.sendall(dice.randbytes(dice.randrange(2000)))
            # A frame header that promises 2^62 bytes.
            raw.sendall(b"\x02" + (1 << 62).to_bytes(8, "big") + dice.randbytes(100))
        except (BrokenPipeError, ConnectionResetError):
            pass


def assert_unharmed(running: RunningDaemon, before: int, engine: int) -> None:
    status = running.client.status()
    assert (status.pid, status.state, status.engines[0].pid) == (running.pid, "ready", engine)
    assert rss_bytes(running.pid) - before < 50 << 20
    assert "Traceback" not in running.log
    assert running.process.poll() is None


def test_garbage_hurts_nobody_else(running: RunningDaemon, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Pass mark: the daemon lives, a good client goes on, no traceback. A million messages: `test_long_marks.py`."""
    dice, seeds = random.Random(7), good_messages()
    with GoodClient(running.endpoint) as good, running.raw_socket(context) as peer:
        peer.rcvtimeo = 20_000
        flood(peer, dice, seeds, 2000)
        before, engine = rss_bytes(running.pid), running.engine_pid()
        assert flood(peer, dice, seeds, MESSAGES - 2000) > MESSAGES / 4
        for _ in range(300):
            raw_bytes(running.endpoint.removeprefix("ipc://"), dice)
        target = good.answers + 20
        until(lambda: good.answers >= target, "the good client goes on", 20)
        assert_unharmed(running, before, engine)
    until(lambda: running.client.status().queue.requests == 0, "no request is kept", 20)
    counters = running.client.status().counters
    assert counters["dropped_unreadable"] > 100
    assert counters["failures"] > 1000


def bombs() -> list[Frames]:
    """Messages that would take a generic decoder many times their size, in header and frames; each about 1 MiB."""
    small = [bytes([kind]) * BOMB_BYTES for kind in (0x80, 0x90, 0xA0, 0xC0, 0xC1, 0xD4)]
    nested = [
        b"\xdd\x00\x0f\xff\xff" * (BOMB_BYTES // 5),
        b"\x91" * BOMB_BYTES,
        b"\x81\xa1a" * (BOMB_BYTES // 3),
    ]
    claims = [
        b"\xc6\xff\xff\xff\xff" + bytes(9),
        b"\xdf\xff\xff\xff\xff" + bytes(9),
        PICKLE * (BOMB_BYTES // len(PICKLE)),
    ]
    strings = {"x": Tensor.from_strings([""] * 200_000)}
    request = RequestHeader(v=1, id=b"b", op="infer")
    made: list[Frames] = [[bytes(frame) for frame in encode_request(request, strings)]]
    header = made[0][1]
    for bomb in (*small, *nested, *claims):
        made += [[b"", bomb], [b"", bomb[:4000]], [b"", header, bomb, bomb], [b"", header[:-1] + bomb[:1000]]]
    # Of a message that was cut, for it has more frames than are read, only the id is looked for.
    maps = b"\x82\xa1v\xdd" + BOMB_BYTES.to_bytes(4, "big") + b"\x80" * BOMB_BYTES + b"\xa2id\xc4\x01b"
    return [*made, [b"", maps, *[b""] * 40]]


def test_bombs_cost_little_memory_and_less_time(
    running: RunningDaemon, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """Pass mark: memory grows by less than four times a frame, the loop is blocked for less than 50 ms.

    That is what all of the daemon's threads run until a reply that waits behind the frame: other work of the machine, which
    the clock on the wall would count, does not.
    """
    with running.raw_socket(context) as peer, running.raw_socket(context) as other:
        peer.rcvtimeo = other.rcvtimeo = 20_000
        # What the daemon takes once, whatever it is sent, is not the matter here.
        for bomb in bombs():
            peer.send_multipart(bomb)
            drain(peer)
        drain(other)
        before = rss_bytes(running.pid)
        for bomb in bombs():
            begun_s = cpu_s(running.pid)
            peer.send_multipart(bomb)
            drain(peer)
            drain(other)
            assert cpu_s(running.pid) - begun_s < 0.05, bomb[1][:20]
        assert rss_bytes(running.pid) - before < 4 * BOMB_BYTES


def test_no_pickle_is_read_whatever_is_sent(
    running: RunningDaemon, context: zmq.Context[zmq.Socket[bytes]], audit: Path
) -> None:
    """Pass mark: the interpreter's own audit sees no `pickle.find_class` in the daemon, garbage and pickles included."""
    dice, seeds = random.Random(8), good_messages()
    with running.raw_socket(context) as peer:
        peer.rcvtimeo = 20_000
        for frames in seeds:
            for spoilt in (
                [b"", PICKLE],
                [PICKLE],
                [*frames, PICKLE],
                [*frames[:-1], PICKLE],
                [frames[0], PICKLE, *frames[2:]],
            ):
                peer.send_multipart(spoilt)
        flood(peer, dice, seeds, 4000)
        drain(peer)
    # What starts the engine is the standard library's, and shows that the audit works.
    assert {int(line) for line in audit.read_text().split()} == {running.engine_pid()}
