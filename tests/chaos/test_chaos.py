"""Everything breaks at random under load, and every request still gets one right answer or one honest error in time.

`scripts/test --chaos [--seed N] [--minutes M]` runs it for long and prints what happened; without that it is a short check.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_callers import Callers
from chaos_faults import Faults
from chaos_requests import Judge
from chaos_world import Keeper, all_gone, gunicorn, open_files, resident_bytes
from metronome import Metronome
from running_daemon import children, until

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SECONDS = 60 * float(os.environ.get("CHAOS_MINUTES", "0.5"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 300)]
PAUSE_S = (0.3, 2.0)
"""Least and most time between two faults."""
MORE_FILES = 3
MORE_BYTES = 64 << 20


@pytest.fixture
def keeper(own_endpoint: str, tmp_path: Path) -> Iterator[Keeper]:
    made = Keeper(own_endpoint, tmp_path)
    yield made
    made.kill()


def test_every_request_gets_one_right_answer_or_one_honest_error(
    keeper: Keeper, own_endpoint: str, socket_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Metronome()
    judge, dice = Judge(clock.stalled_s), random.Random(f"{SEED}/pauses")
    files, memory = open_files(keeper.daemon.pid), resident_bytes(keeper.daemon.pid)
    with clock, gunicorn(own_endpoint) as web:
        faults = Faults(keeper, web, judge, SEED)
        with Callers(judge, own_endpoint, web.path, SEED, direct=4, web=4):
            begun = judge.last_right = time.monotonic()
            while time.monotonic() - begun < SECONDS:
                time.sleep(dice.uniform(*PAUSE_S))
                faults.inject()
            faults.wait()
            recovered = judge.outcomes["right"] + 50
            until(lambda: judge.outcomes["right"] >= recovered, "50 right answers after the last fault", 30)
        with capsys.disabled():
            print(table(judge, faults, keeper, clock, time.monotonic() - begun))
        workers = web.workers()
        assert web.stop() == 0, "".join(web.log[-60:])
    assert (judge.wrong, keeper.tracebacks) == ([], []), "".join(web.log[-60:])
    assert sum(judge.outcomes.values()) == judge.sent
    assert_nothing_is_left(keeper, socket_folder, files, memory, workers)


def assert_nothing_is_left(keeper: Keeper, folder: Path, files: int, memory: int, workers: list[int]) -> None:
    """The daemon is as it was when it was new, and stopping it leaves nothing behind."""
    daemon = keeper.daemon
    until(lambda: daemon.client.status().queue.requests == 0, "no request is open", 10)
    until(lambda: open_files(daemon.pid) <= files + MORE_FILES, "connections are closed", 10)
    assert resident_bytes(daemon.pid) <= memory + MORE_BYTES
    assert len(children(daemon.pid)) <= 2
    assert len(daemon.client.status().engines) == 1
    assert keeper.stop() == 0
    all_gone({*keeper.seen, *workers})
    assert [path.name for path in folder.iterdir()] == ["s.lock"]


def table(judge: Judge, faults: Faults, keeper: Keeper, clock: Metronome, seconds: float) -> str:
    """What happened, for people."""
    lines = [
        ("seed, seconds", f"{SEED}, {seconds:.0f}"),
        ("requests", f"{judge.sent}"),
        *((f"  {outcome}", f"{count}") for outcome, count in judge.outcomes.most_common()),
        ("faults", f"{faults.done.total()}"),
        *((f"  {name}", f"{count}") for name, count in faults.done.most_common()),
        ("daemon restarts, by exit code", f"{len(keeper.ended)}: {sorted(keeper.ended)}"),
        ("processes of daemons and engines", f"{len(keeper.seen)}"),
        ("longest time without a right answer", f"{judge.longest_gap_s:.2f} s"),
        ("latest outcome after its deadline", f"{judge.slowest_s:.2f} s"),
        ("  not counting stalls of this process", f"{judge.slowest_unstalled_s:.2f} s"),
        ("longest wait for a worker of Gunicorn", f"{judge.longest_wait_s:.2f} s"),
        ("longest stall of this process", f"{clock.longest_s:.2f} s"),
    ]
    return "\n" + "\n".join(f"{name:40} {value}" for name, value in lines)
