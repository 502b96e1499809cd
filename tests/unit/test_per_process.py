"""Which connection a process gets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpu_server import per_process as module
from gpu_server.connection import Connection
from gpu_server.per_process import PerProcess


def test_threads_that_come_first_together_get_one(own_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    per_process = PerProcess(own_endpoint)
    parents = per_process.get()
    gate = threading.Barrier(8)
    monkeypatch.setattr(module.os, "getpid", lambda: 4_000_000)

    def first_use(_: int) -> Connection:
        gate.wait(10)
        return per_process.get()

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(first_use, range(8)))
    assert len(made) == 1
    assert parents not in made
    per_process.close()
    parents.close()


def test_after_a_close_there_is_a_new_one(own_endpoint: str) -> None:
    per_process = PerProcess(own_endpoint)
    first = per_process.get()
    assert per_process.get() is first
    per_process.close()
    per_process.close()
    second = per_process.get()
    assert second is not first
    per_process.close()


def test_what_is_made_while_another_closes_is_kept(
    own_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_process = PerProcess(own_endpoint)
    close, made = Connection.close, []

    def slow_close(connection: Connection) -> None:
        close(connection)
        made.append(per_process.get())

    per_process.get()
    monkeypatch.setattr(Connection, "close", slow_close)
    per_process.close()
    monkeypatch.undo()
    assert per_process.get() is made[0]
    per_process.close()
