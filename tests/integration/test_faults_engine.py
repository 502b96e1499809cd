"""Faults of the engine with real processes: too little memory, callers that gave up, a forward that never returns, a device
that is gone."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from daemon_log import lines
from metronome import Metronome
from running_daemon import RunningDaemon, StartDaemon, until

from gpu_server.errors import DeadlineExceeded, DeviceLost, EngineCrashed, RemoteError, ShuttingDown

pytestmark = pytest.mark.slow


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.touch()
    return path


FITS, TOO_LONG = 100, 500
"""Most tokens of an ordinary row, and of one that never fits into the memory that the model Hungry has."""


def rows_of(dice: random.Random, number: int) -> list[list[int]]:
    """A request: rows of any length that begin with a number of their own; every 50th has one that never fits."""
    rows = [[1] * dice.randrange(1, FITS) for _ in range(dice.randrange(1, 40))]
    if number % 50 == 7:
        rows[dice.randrange(len(rows))] = [1] * TOO_LONG
    for place, row in enumerate(rows):
        row[0] = 100 * (number + 1) + place
    return rows


def outcome(running: RunningDaemon, rows: list[list[int]]) -> tuple[list[int], dict[int, str]]:
    """A request's answers, and its items' errors by item."""
    reply = running.client.infer_request("Hungry", {"ids": rows}, timeout_s=60)
    return reply.outputs["output"].to_numpy().tolist(), {e.item: e.code for e in reply.header.item_errors}


def last_crowded_batch(forwards: list[str]) -> int:
    """The number of the last batch that was too large with several rows; forwards of rows seen before are retries."""
    seen: set[str] = set()
    batches = last = 0
    for forward in forwards:
        said, *rows = forward.split()
        batches += not seen & set(rows)
        seen |= set(rows)
        if said == "failed" and len(rows) > 1:
            last = batches
    return last


def test_batches_too_large_for_memory_are_split_and_soon_not_made(daemon: StartDaemon, notes: Path) -> None:
    """Pass mark: of 200 mixed requests every answer is right, one error for each item that never fits and no other,
    and from the 21st batch on none is too large any more."""
    running = daemon("failing_models:Hungry", NOTES=str(notes)).wait_ready()
    warm_up, dice = len(notes.read_text().splitlines()), random.Random(5)
    asked = [rows_of(dice, number) for number in range(200)]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda rows: outcome(running, rows), asked))
    for rows, (answers, errors) in zip(asked, got, strict=True):
        assert errors == {i: "out_of_memory" for i, row in enumerate(rows) if len(row) == TOO_LONG}
        assert answers == [0 if i in errors else sum(row) for i, row in enumerate(rows)]
    assert 0 < last_crowded_batch(notes.read_text().splitlines()[warm_up:]) <= 20


def test_an_item_too_large_for_memory_fails_alone(daemon: StartDaemon, notes: Path) -> None:
    """Pass mark: one error for each item that never fits, and for no other."""
    running = daemon("failing_models:Hungry", NOTES=str(notes)).wait_ready()
    reply = running.client.infer_request("Hungry", {"ids": [[1] * 5, [1] * 500, [1] * 7]})
    assert [(e.item, e.code) for e in reply.header.item_errors] == [(1, "out_of_memory")]
    assert reply.outputs["output"].to_numpy().tolist() == [5, 0, 7]
    # Once the budget is lower such an item rides in a batch of its own: still it must not fail the others.
    reply = running.client.infer_request("Hungry", {"ids": [[1] * 5, [1] * 500, [1] * 7]})
    assert [(e.item, e.code) for e in reply.header.item_errors] == [(1, "out_of_memory")]
    assert reply.outputs["output"].to_numpy().tolist() == [5, 0, 7]


def test_what_three_hundred_callers_gave_up_is_not_run(daemon: StartDaemon, notes: Path) -> None:
    """Pass mark: when all have given up after 0.1 s, at most one batch of 50 ms begins beyond the two that the engine has.

    The engine has one more than it runs, so that it never waits.
    """
    running = daemon("failing_models:Slow", NOTES=str(notes)).wait_ready()
    running.client.hello()
    started = threading.Barrier(300)

    def give_up(value: int) -> None:
        started.wait(30)
        with suppress(RemoteError):
            running.client.infer(x=[value], timeout_s=0.1)

    with Metronome(0.04) as clock, ThreadPoolExecutor(300) as pool:
        # Again where the machine stalled, for then the engine ran on and the daemon did not, or the other way round.
        for _ in range(5):
            notes.write_text("")
            asked_at = time.monotonic()
            for future in [pool.submit(give_up, value) for value in range(300)]:
                future.result(30)
            given_up_at = time.time()
            until(lambda: running.client.status().queue.requests == 0, "nobody waits", 5)
            if clock.calm(asked_at, time.monotonic()):
                break
    assert running.client.infer(x=[4])["output"].tolist() == [8]  # type: ignore[union-attr]
    # Of those that begin later, the last is what was just asked, and one was with the engine before.
    begun = [float(line) for line in notes.read_text().split()]
    assert sum(at > given_up_at for at in begun) <= 1 + 1 + 1
    assert len(begun) < 300 / 4 / 2


def test_a_forward_that_never_returns_costs_the_engine_and_not_the_others(
    daemon: StartDaemon, notes: Path
) -> None:
    """Pass mark: noticed within the limit (1 s here) and a second, and the others served after the respawn."""
    running = daemon("failing_models:Slow", "--batch-timeout-s", "1", NOTES=str(notes)).wait_ready()
    notes.write_text("")
    first = running.engine_pid()
    with Metronome(0.02, every_core=True) as clock, ThreadPoolExecutor(5) as pool:
        hung = pool.submit(running.client.infer, x=[-1], timeout_s=60)
        until(lambda: notes.read_text(), "the forward hangs", 20)
        others = [pool.submit(running.client.infer, x=[value], timeout_s=60) for value in range(4)]
        until(lambda: lines(running.log, "a forward hangs"), "it is noticed", 20)
        (noticed,) = lines(running.log, "a forward hangs")
        assert clock.unix_ran_s(float(notes.read_text().split()[0]), noticed.at) <= 1 + 1
        assert [future.result()["output"].tolist() for future in others] == [[2 * v] for v in range(4)]  # type: ignore[union-attr]
        with pytest.raises((EngineCrashed, DeadlineExceeded)):
            hung.result()
    assert running.engine_pid() != first


def test_a_device_that_is_gone_is_told_at_once_and_ends_the_daemon(daemon: StartDaemon, notes: Path) -> None:
    """Pass mark: not ready in < 5 s, and the exit code by which service managers do not start it again."""
    running = daemon("failing_models:Vanishing", NOTES=str(notes)).wait_ready()
    assert running.client.infer(x=[3])["output"].tolist() == [3]  # type: ignore[union-attr]
    with Metronome(0.02, every_core=True) as clock, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.client.infer, x=[-1])
        until(lambda: (status := running.status()) is None or status.state != "ready", "not ready", 20)
        assert clock.unix_ran_s(float(notes.read_text()), time.time()) < 5
        with pytest.raises((EngineCrashed, ShuttingDown)):
            asked.result(60)
    assert running.wait_end() == DeviceLost.exit_code
    assert "gpu-server: the device is lost" in running.log.splitlines()[-1]


def test_the_end_of_an_engine_is_noticed_though_a_child_of_its_model_lives_on(
    daemon: StartDaemon, notes: Path, tmp_path: Path
) -> None:
    """The child holds the other ends of what the daemon would hear the end by."""
    running = daemon("failing_models:Forking", NOTES=str(notes), GATE=str(tmp_path / "gate")).wait_ready()
    try:
        [engine] = running.client.status().engines
        os.kill(engine.pid, signal.SIGKILL)
        until(lambda: engine.pid not in [e.pid for e in running.client.status().engines], "the notice", 10)
        assert running.client.infer("Forking", x=[21], timeout_s=30)["output"].tolist() == [42]
    finally:
        (tmp_path / "gate").touch()
