"""Pass marks that take a minute each; `scripts/test -m long` runs these, an ordinary run does not."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq
from fault_world import Callers, p99_s, rss_bytes
from hostile_world import flood, good_messages
from overload_world import CAPACITY, assert_goodput_holds, paced
from running_daemon import StartDaemon
from running_gunicorn import CLASSES, RunningGunicorn
from web_storm import WebCallers, assert_hang_ups_are_not_noticed

from gpu_server.client import Client
from gpu_server.daemon.instance import control_endpoint

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_an_engine_killed_every_five_seconds_loses_nothing(daemon: StartDaemon) -> None:
    """Pass mark: for a minute no hang, no wrong answer, and no error while deadlines (30 s) are longer than a load.

    The fifth crash in five minutes is the daemon's last: it ends, says so, and another is started as systemd would.
    """
    running = daemon("served_models:Numbers").wait_ready()
    daemons, allowed, kills = 1, 0, 0
    with Callers(running, 4) as load:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            load.more()
            assert len(load.errors) == allowed
            kills += 1
            os.kill(running.engine_pid(), signal.SIGKILL)
            if kills % 5 == 0:
                assert running.wait_end(10) == 70
                assert "failed 5 times in 300 s" in running.log
                daemons += 1
                running = daemon("served_models:Numbers").wait_ready()
                load.more()
                allowed = len(load.errors)
            time.sleep(5)
        load.more()
    assert len(load.errors) == allowed
    assert {error.code for error in load.errors} <= {
        "engine_crashed",
        "unavailable",
        "shutting_down",
        "model_loading",
    }
    assert kills >= 6


def test_two_hundred_hang_ups_in_a_minute_are_not_noticed(daemon: StartDaemon) -> None:
    assert_hang_ups_are_not_noticed(daemon("served_models:Numbers").wait_ready(), 200, every_s=0.3)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_model_that_takes_a_minute_is_a_504_before_gunicorn_would_kill_the_worker(
    daemon: StartDaemon, worker_class: str, tmp_path: Path
) -> None:
    """Pass mark: with time-outs as shipped (Gunicorn's is 30 s) 504 in < 29 s, and the worker lives."""
    running = daemon("served_models:Numbers").wait_ready()
    gate = {"gate": str(tmp_path / "never")}
    with RunningGunicorn(running.endpoint, *CLASSES[worker_class], "--timeout", "30") as web:
        workers = web.workers()
        begun = time.monotonic()
        status, _ = web.ask("POST", "/v1/models/Numbers/infer", {"inputs": {"x": [1]}, "parameters": gate})
        assert (status, 20 < time.monotonic() - begun < 29) == (504, True)
        assert web.ask("GET", "/livez")[0] == 200
        assert web.workers() == workers


def test_at_three_times_the_capacity_for_a_minute(daemon: StartDaemon) -> None:
    assert_goodput_holds(daemon("served_models:Steady").wait_ready(), 60.0)


def test_a_million_damaged_messages_are_not_noticed(daemon: StartDaemon) -> None:
    """Pass mark: the daemon lives, memory flat, no traceback, p99 of others normal: within 10 % of that without, in turn."""
    # What of the messages is still good goes to the first model.
    running = daemon("served_models:Numbers", "served_models:Steady").wait_ready()
    dice, seeds = random.Random(9), good_messages()
    usual_s: list[float] = []
    beside_s: list[float] = []
    with (
        zmq.Context() as context,
        running.raw_socket(context) as peer,
        Callers(running, 8, "Steady") as others,
    ):
        peer.rcvtimeo = 20_000
        flood(peer, dice, seeds, 2000)
        before, engine = rss_bytes(running.pid), running.engine_pid()
        for _ in range(10):
            usual_s += others.next(100)
            first = len(others.took_s)
            flood(peer, dice, seeds, 100_000)
            beside_s += others.took_s[first:]
        grown = rss_bytes(running.pid) - before
    assert others.errors == []
    assert p99_s(beside_s) < 1.1 * p99_s(usual_s)
    assert grown < 50 << 20
    assert "Traceback" not in running.log
    assert running.engine_pid() == engine


def test_ten_thousand_requests_of_preloaded_workers_get_their_own_answers(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    """Pass mark: four workers that were forked after the master had used its client, and no answer is another's."""
    running = daemon("served_models:Numbers").wait_ready()
    (tmp_path / "early_app.py").write_text(
        "from web import app\nfrom web.backend import get_client\n"
        "with app.app_context():\n    assert get_client().infer(x=[1])['y'].tolist() == [3]\n"
    )
    options = ("--preload", "--pythonpath", str(tmp_path))
    with (
        RunningGunicorn(running.endpoint, *options, workers=4, app="early_app:app") as web,
        WebCallers(web, callers=16) as callers,
    ):
        callers.until_right(10_000, 180)
        assert len(set(web.served_by())) == 4
    assert set(callers.seen) == {"right"}


def test_ten_reloads_at_seventy_percent_load_double_no_p99(daemon: StartDaemon) -> None:
    """Pass mark: no error, and the p99 of what is asked during reloads < 2× that of what is asked between them."""
    running = daemon("served_models:Steady").wait_ready()
    quiet: list[tuple[float, float]] = []
    reloads: list[tuple[float, float]] = []
    with ThreadPoolExecutor(1) as pool, Client(control_endpoint(running.endpoint), timeout_s=60) as control:
        load = pool.submit(asyncio.run, paced(running.endpoint, 0.7 * CAPACITY, 100, 30.0))
        for _ in range(10):
            begun = time.monotonic()
            time.sleep(3)
            at = time.monotonic()
            control.request(op="reload")
            quiet.append((begun, at))
            reloads.append((at, time.monotonic()))
        seen = load.result(150)
    assert set(seen.outcomes) == {"right"}
    usual_s = p99_s([took for span in quiet for took in seen.took_s(*span)])
    beside_s = p99_s([took for span in reloads for took in seen.took_s(*span)])
    assert beside_s < 2 * usual_s
