"""Faults of the engine with real processes: too little memory, callers that gave up, a forward that never returns."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from running_daemon import RunningDaemon, StartDaemon, until

from gpu_server.errors import DeadlineExceeded, EngineCrashed, RemoteError

pytestmark = pytest.mark.slow


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.touch()
    return path


def total(running: RunningDaemon, lengths: list[int]) -> list[int]:
    rows = [[1] * length for length in lengths]
    answer: list[int] = running.client.infer(ids=rows)["output"].tolist()  # type: ignore[union-attr]
    return answer


def test_batches_too_large_for_memory_are_split_and_soon_not_made(daemon: StartDaemon, notes: Path) -> None:
    """Pass mark: 200 mixed requests all right, and within 20 batches none is too large any more.

    A batch that does not fit is run in halves as well: twenty of them are at least forty runs.
    """
    running = daemon("failing_models:Hungry", NOTES=str(notes)).wait_ready()
    dice = random.Random(5)
    asked = [[dice.randrange(1, 100) for _ in range(dice.randrange(1, 40))] for _ in range(200)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda lengths: total(running, lengths), asked)) == asked
    ran = notes.read_text().split("\n")
    assert "out of memory" in ran
    assert "out of memory" not in ran[40:]


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
    """Pass mark: at most one batch beyond those that ran already, which are two; the last is what is asked afterwards."""
    running = daemon("failing_models:Slow", NOTES=str(notes)).wait_ready()
    running.client.hello()

    def give_up(value: int) -> None:
        with pytest.raises(RemoteError):
            while True:
                running.client.infer(x=[value], timeout_s=0.1)

    with ThreadPoolExecutor(300) as pool:
        for future in [pool.submit(give_up, value) for value in range(300)]:
            future.result(30)
    until(lambda: running.client.status().queue.requests == 0, "nobody waits", 5)
    at_the_end = len(notes.read_text().split())
    assert running.client.infer(x=[4])["output"].tolist() == [8]  # type: ignore[union-attr]
    assert len(notes.read_text().split()) <= at_the_end + 3


def test_a_forward_that_never_returns_costs_the_engine_and_not_the_others(
    daemon: StartDaemon, notes: Path
) -> None:
    """Pass mark: noticed within the limit and a second, and the others served after the respawn."""
    running = daemon("failing_models:Slow", "--batch-timeout-s", "1", NOTES=str(notes)).wait_ready()
    first = running.engine_pid()
    with ThreadPoolExecutor(5) as pool:
        begun = time.monotonic()
        hung = pool.submit(running.client.infer, x=[-1], timeout_s=60)
        until(lambda: notes.read_text(), "the forward hangs", 5)
        others = [pool.submit(running.client.infer, x=[value], timeout_s=60) for value in range(4)]
        until(lambda: "a forward hangs" in running.log, "it is noticed", 5)
        assert time.monotonic() - begun < 3
        assert [future.result()["output"].tolist() for future in others] == [[2 * v] for v in range(4)]  # type: ignore[union-attr]
        with pytest.raises((EngineCrashed, DeadlineExceeded)):
            hung.result()
    assert running.engine_pid() != first
