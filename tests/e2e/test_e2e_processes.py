"""One process holds the model, however many workers serve it; their requests share its batches; nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from corpus import of_length
from running_daemon import RunningDaemon, alive, children, until
from running_gunicorn import RunningGunicorn

BATCH_ITEMS = re.compile(
    r'^gpu_server_batch_items_(?:bucket\{[^}]*le="([^"]+)"[^}]*\}|(sum|count)\{.*\}) (\S+)$', re.M
)


def batch_items(web: RunningGunicorn) -> dict[str, float]:
    """The daemon's batch-size histogram, read over HTTP: batches of at most so many items, and the items of all."""
    status, text = web.ask("GET", "/metrics")
    assert status == 200
    return {bound or total: float(value) for bound, total, value in BATCH_ITEMS.findall(text)}


def family(*roots: int) -> list[int]:
    """Processes and all their descendants."""
    found = list(roots)
    for pid in found:
        found += children(pid)
    return found


def maps(pid: int) -> str:
    """The files and memory that a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text()


def open_files(pid: int) -> list[str]:
    """What a process's descriptors point to."""
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def load(web: RunningGunicorn, requests: int) -> None:
    """That many requests of one text, 64 at a time; each must succeed."""
    texts = [of_length(40 + i % 40) for i in range(requests)]
    with ThreadPoolExecutor(64) as pool:
        answers = pool.map(lambda text: web.ask("POST", "/embed", {"inputs": text}), texts)
        assert {status for status, _ in answers} == {200}


def test_requests_of_different_workers_share_batches(sync_web: RunningGunicorn) -> None:
    """A sync worker has one request at a time, of one item here: two items in a batch came from two workers."""
    before = batch_items(sync_web)
    load(sync_web, 160)
    after = batch_items(sync_web)
    counted = {bound: after[bound] - before[bound] for bound in after}
    batches, alone = counted["count"], counted["1"]
    assert counted["sum"] == 160
    assert batches - alone > 20
    assert counted["sum"] / batches > 1.5
    assert counted["4"] == batches


def test_only_the_engine_maps_torch(
    minilm: RunningDaemon, sync_web: RunningGunicorn, web: RunningGunicorn
) -> None:
    for running in (sync_web, web):
        running.ask_every_worker("POST", "/embed", {"inputs": "hi"})
    everyone = family(minilm.pid, sync_web.process.pid, web.process.pid)
    workers = [*sync_web.workers(), *web.workers()]
    assert len(workers) == 8
    assert {minilm.pid, minilm.engine_pid(), sync_web.process.pid, web.process.pid, *workers} <= set(everyone)
    assert [pid for pid in everyone if "libtorch" in maps(pid)] == [minilm.engine_pid()]
    for pid in workers:
        assert "libzmq" in maps(pid)
        assert "libcuda" not in maps(pid)
        assert not [name for name in open_files(pid) if "nvidia" in name]


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A socket of the test's own, in a folder that must be clean at its end."""
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        yield f"ipc://{folder}/s"


def sockets(endpoint: str) -> list[str]:
    """Socket files in an endpoint's folder."""
    return [
        entry.name for entry in Path(endpoint.removeprefix("ipc://")).parent.iterdir() if entry.is_socket()
    ]


def test_a_stop_leaves_nothing(endpoint: str, models_folder: Path) -> None:
    shared = shared_memory()
    daemon = RunningDaemon(endpoint, "linear:Linear", folder=models_folder)
    with RunningGunicorn(endpoint) as web:
        try:
            daemon.wait_ready()
            body = {"inputs": {"x": [[0.0] * 8], "nonce": [1]}}
            assert web.ask("POST", "/v1/models/Linear/infer", body)[0] == 200
            everyone = family(daemon.pid, web.process.pid)
            assert len(everyone) >= 5
            assert web.stop() == 0
            daemon.terminate()
            assert daemon.wait_end() == 0
            until(lambda: not any(map(alive, everyone)), "the end of every process", wait_s=5)
        finally:
            daemon.kill()
    assert sockets(endpoint) == []
    assert shared_memory() == shared


def test_a_killed_daemon_leaves_nothing_that_blocks_the_next(endpoint: str, models_folder: Path) -> None:
    shared = shared_memory()
    killed = RunningDaemon(endpoint, "linear:Linear", folder=models_folder)
    try:
        killed.wait_ready()
        everyone = family(killed.pid)
        assert killed.engine_pid() in everyone
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait_end() == -signal.SIGKILL
        until(lambda: not any(map(alive, everyone)), "the engine's end with its daemon", wait_s=5)
    finally:
        killed.kill()
    following = RunningDaemon(endpoint, "linear:Linear", folder=models_folder)
    try:
        following.wait_ready()
        following.terminate()
        assert following.wait_end() == 0
    finally:
        following.kill()
    assert sockets(endpoint) == []
    assert shared_memory() == shared
