"""A daemon's life with real processes: load, drain, both kinds of kill, and what is left afterwards."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from daemon_log import lines, started_at
from metronome import Metronome
from running_daemon import MODELS, RunningDaemon, StartDaemon, alive, children, clean_environment, until

from gpu_server.client import Client
from gpu_server.errors import EngineCrashed, ModelLoading, RemoteError, ShuttingDown, Unavailable

pytestmark = pytest.mark.slow


def ask(client: Client, value: int, gate: Path | None = None) -> list[int]:
    params = {"gate": str(gate)} if gate else {}
    answer: list[int] = client.infer(x=[value], params=params)["y"].tolist()  # type: ignore[union-attr]
    return answer


def children_cpu_s() -> float:
    """CPU time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def open_requests(daemon: RunningDaemon, count: int) -> None:
    until(lambda: daemon.client.status().queue.requests == count, f"{count} open requests", 20)


def family(daemon: RunningDaemon) -> list[int]:
    """The daemon and every process below it."""
    found = [daemon.pid]
    for pid in found:
        found += children(pid)
    return found


def assert_nothing_is_left(pids: list[int], folder: Path, within_s: float = 2.0) -> None:
    until(lambda: not any(map(alive, pids)), f"the end of {pids}", within_s)
    assert [path.name for path in folder.iterdir()] == ["s.lock"]


class Load:
    """Callers that never stop asking; `outcomes` counts right answers and errors by type, `wrong` must stay empty."""

    def __init__(self, client: Client, threads: int = 4) -> None:
        self.client = client
        self.answered = 0
        self.errors: list[RemoteError] = []
        self.wrong: list[object] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def _run(self, thread: int) -> None:
        value = thread * 1_000_000
        while not self._stop.is_set():
            value += 1
            try:
                got = ask(self.client, value)
            except RemoteError as error:
                self.errors.append(error)
                self._stop.wait(0.01)
                continue
            if got != [2 * value + 1]:
                self.wrong.append((value, got))
            self.answered += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def more(self) -> None:
        """Return once 50 more answers have come."""
        target = self.answered + 50
        until(lambda: self.answered >= target, "50 more answers")


def test_a_slow_load_is_visible_and_nobody_is_let_in_before_the_warm_up(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    load, warm = tmp_path / "load", tmp_path / "warm"
    running = daemon("served_models:Gated", LOAD_GATE=str(load), WARM_GATE=str(warm))

    def shows(phase: str) -> Callable[[], bool]:
        def check() -> bool:
            status = running.status()
            return status is not None and status.phase == phase

        return check

    until(shows("loading Gated"), "the load is shown")
    loading = running.client.status()
    assert (loading.state, loading.engines[0].state, loading.models) == ("loading", "loading", ())
    with pytest.raises(ModelLoading):
        ask(running.client, 1)
    assert running.client.hello().models == ()
    assert "\ngpu_server_ready 0\n" in running.client.metrics()
    load.touch()
    until(shows("warming up Gated"), "the warm-up is shown")
    warming = running.client.status()
    assert (warming.state, warming.engines[0].state) == ("loading", "warming")
    assert 0 < loading.progress < warming.progress < 1
    with pytest.raises(ModelLoading):
        ask(running.client, 1)
    warm.touch()
    running.wait_ready()
    assert ask(running.client, 4) == [9]
    assert "\ngpu_server_ready 1\n" in running.client.metrics()
    assert running.client.status().progress == 1.0


def test_sigterm_answers_what_was_accepted_and_leaves_nothing(
    daemon: StartDaemon, tmp_path: Path, socket_folder: Path
) -> None:
    running = daemon("served_models:Numbers").wait_ready()
    gate, pids = tmp_path / "gate", family(running)
    assert len(pids) >= 2
    with ThreadPoolExecutor(9) as pool:
        accepted = [pool.submit(ask, running.client, n, gate) for n in range(8)]
        open_requests(running, 8)
        running.terminate()
        until(lambda: running.client.status().state == "draining", "draining", 10)
        with pytest.raises(ShuttingDown):
            ask(running.client, 1)
        gate.touch()
        assert [future.result(20) for future in accepted] == [[2 * n + 1] for n in range(8)]
    assert running.wait_end() == 0
    assert_nothing_is_left(pids, socket_folder)
    assert "Traceback" not in running.log
    again = daemon("served_models:Numbers").wait_ready()
    assert ask(running.client, 3) == [7]
    assert again.pid != running.pid


def test_a_second_signal_leaves_at_once(daemon: StartDaemon, tmp_path: Path, socket_folder: Path) -> None:
    running = daemon("served_models:Numbers").wait_ready()
    pids = family(running)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ask, running.client, 1, tmp_path / "never")
        open_requests(running, 1)
        running.terminate()
        until(lambda: running.client.status().state == "draining", "draining", 10)
        started = time.monotonic()
        running.terminate()
        with pytest.raises((ShuttingDown, Unavailable)):
            future.result(20)
        assert running.wait_end() == 0
        assert time.monotonic() - started < 5
    assert_nothing_is_left(pids, socket_folder)


def test_killing_the_daemon_ends_the_engine_and_the_next_one_starts_at_once(
    daemon: StartDaemon, socket_folder: Path
) -> None:
    """Pass mark: no process of it after 2 s, and a caller's next answer comes when the next one has loaded and 1 s later.

    What a start takes beside the load is compared with what it took when nobody had been killed.
    """
    begun = time.time()
    first = daemon("served_models:Numbers")
    until(lambda: answers(first.client), "an answer")
    usual_s = time.time() - begun - load_s(first)
    pids = family(first)
    with Metronome() as clock, Load(first.client) as load:
        os.kill(first.pid, signal.SIGKILL)
        first.wait_end(10)
        until(lambda: not any(map(alive, pids)), "the engine is gone", 2.0)
        answered, again = load.answered, time.monotonic()
        second = daemon("served_models:Numbers")
        until(lambda: load.answered > answered, "an answer")
        took_s = clock.ran_s(again)
        assert took_s - load_s(second) < usual_s + 1
        load.more()
    assert load.wrong == []
    assert {type(error) for error in load.errors} <= {Unavailable, ModelLoading}
    assert {path.name for path in socket_folder.iterdir()} == {"s", "s.ctl", "s.lock"}


def answers(client: Client) -> bool:
    with suppress(RemoteError):
        return ask(client, 1) == [3]
    return False


def load_s(daemon: RunningDaemon) -> float:
    """From the start of the engine's process until it is ready."""
    return lines(daemon.log, "engine ready")[0].at - started_at(daemon.engine_pid())


def test_killing_the_engine_costs_at_most_a_retry(daemon: StartDaemon) -> None:
    running = daemon("served_models:Numbers").wait_ready()
    victim = running.engine_pid()
    with Load(running.client) as load:
        os.kill(victim, signal.SIGKILL)
        load.more()
    status = running.client.status()
    assert load.wrong == []
    assert {type(error) for error in load.errors} <= {EngineCrashed}
    assert (status.pid, status.state) == (running.pid, "ready")
    (engine,) = status.engines
    assert (engine.restarts, engine.pid != victim, alive(victim)) == (1, True, False)
    assert "Traceback" not in running.log


def test_a_second_daemon_is_turned_away_and_the_first_keeps_serving(
    daemon: StartDaemon, own_endpoint: str
) -> None:
    """Pass mark: the second ends in < 1 s, before any framework is imported.

    On a machine with other work that is CPU time, beside what Python needs for the imports alone.
    """
    running = daemon("served_models:Numbers").wait_ready()
    command = [sys.executable, "-X", "importtime", "-m", "gpu_server", "start", "served_models:Numbers"]
    bare = [sys.executable, "-X", "importtime", "-c", "import gpu_server.cli"]
    begun_s = children_cpu_s()
    subprocess.run(bare, env=clean_environment(), capture_output=True, check=True, timeout=20)
    before_s = children_cpu_s()
    second = subprocess.run(
        command, cwd=MODELS, env=clean_environment(GPU_SERVER_ENDPOINT=own_endpoint), capture_output=True,
        text=True, timeout=20,
    )  # fmt: skip
    assert children_cpu_s() - before_s < 1 + (before_s - begun_s)
    printed = second.stderr.splitlines()
    said = [line for line in printed if not line.startswith("import time:")]
    imported = {line.split()[-1] for line in printed}
    expected = f"gpu-server: a daemon (pid {running.pid}) already serves {own_endpoint}"
    assert (second.returncode, said) == (75, [expected])
    assert "gpu_server.daemon.instance" in imported
    assert not {"torch", "transformers", "served_models"} & imported
    assert ask(running.client, 2) == [5]
    stopped = subprocess.run(
        [sys.executable, "-m", "gpu_server", "stop"],
        env=clean_environment(GPU_SERVER_ENDPOINT=own_endpoint), capture_output=True, timeout=20,
    )  # fmt: skip
    assert (stopped.returncode, stopped.stderr, running.wait_end(5)) == (0, b"", 0)
