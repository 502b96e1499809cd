"""A `Client` that nobody holds any more frees its thread and descriptors by itself."""

from __future__ import annotations

import gc
import os
import threading

from running_daemon import until

from gpu_server.client import Client
from gpu_server.testing import FakeServer


def test_a_dropped_client_leaves_nothing_behind(server: FakeServer) -> None:
    def held() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    elders = _client_threads()
    Client(server.endpoint).embed("a")
    until(lambda: _client_threads() <= elders, "the first client's thread", 10)
    before = held()
    for _ in range(5):
        Client(server.endpoint).hello()
    gc.collect()
    until(lambda: _client_threads() <= elders, "the threads of dropped clients", 10)
    until(lambda: held() <= before, "their descriptors", 10)


def _client_threads() -> set[threading.Thread]:
    """I/O threads of clients; other tests' fixtures may have some too."""
    return {thread for thread in threading.enumerate() if thread.name == "gpu-server-client"}
