"""Models are changed while requests run, with real processes: no answer is lost, none is wrong, whatever breaks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from reload_world import Load, Oracle, version_of
from running_daemon import StartDaemon, alive, children, until

from gpu_server.errors import Conflict, EngineCrashed, LoadFailed, ModelNotFound, ShuttingDown, Unavailable

pytestmark = pytest.mark.slow


class StartOracle(Protocol):
    """The fixture `start`: models of `start` if not the oracle alone, and its settings by keyword."""

    def __call__(self, *models: str, **settings: Any) -> Oracle: ...


@pytest.fixture
def start(daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartOracle]:
    # Python takes a compiled module for current when its source has the same second and size.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with ExitStack() as stack:

        def made(*models: str, **settings: Any) -> Oracle:
            oracle = Oracle(tmp_path, daemon, *models, **settings)
            stack.callback(oracle.control.close)
            return oracle

        yield made


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def engines(oracle: Oracle) -> list[str]:
    return [engine.state for engine in oracle.daemon.client.status().engines]


def test_ten_reloads_under_load_lose_and_mix_nothing(start: StartOracle) -> None:
    oracle = start()
    files = []
    with Load(oracle) as load:
        for version in range(2, 12):
            oracle.set(version=version)
            oracle.control.request(op="reload")
            assert oracle.version() == version
            load.more()
            files.append(open_files(oracle.daemon.pid))
    load.assert_clean()
    assert set(load.versions) == set(range(1, 12))
    assert all(len(names) == 1 for names in load.versions.values())
    assert len(set.union(*load.versions.values())) == 11
    assert max(files[1:]) <= files[0] + 2
    assert engines(oracle) == ["ready"]
    assert oracle.daemon.client.status().engines[0].restarts == 0
    # The engine, and the process with which multiprocessing watches over spawned ones.
    assert len(children(oracle.daemon.pid)) <= 2
    assert "Traceback" not in oracle.daemon.log


BAD = {
    "load": "model 'Oracle' fails to load: OSError: weights.bin is truncated (oracle_model.py:",
    "nan": "model 'Oracle' answers its own example with NaN or infinity in output 'score'",
    "exit": "exited with code 9",
}


def test_a_bad_version_leaves_the_old_one_serving(start: StartOracle) -> None:
    oracle = start()
    pid = oracle.daemon.engine_pid()
    with Load(oracle) as load:
        for bad, reason in BAD.items():
            oracle.set(version=2, bad=bad)
            done = oracle.verb("reload")
            load.more()
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (74, "", 1)
            assert done.stderr.startswith(f"gpu-server: {reason}")
    load.assert_clean()
    assert (set(load.versions), oracle.daemon.engine_pid(), engines(oracle)) == ({1}, pid, ["ready"])
    oracle.set(version=3)
    assert oracle.verb("reload").returncode == 0
    assert oracle.version() == 3


def test_models_come_and_go_without_touching_the_others(start: StartOracle) -> None:
    oracle = start()
    with Load(oracle) as load:
        loaded = oracle.verb("load", "second=oracle_model:Other")
        assert (loaded.returncode, loaded.stderr) == (0, "")
        assert [line.split()[0] for line in loaded.stdout.splitlines()] == ["Oracle", "second"]
        assert version_of(oracle.ask(1, model="second")) == 1
        unloaded = oracle.verb("unload", "second")
        assert (unloaded.returncode, unloaded.stdout.split()[0]) == (0, "Oracle")
        with pytest.raises(ModelNotFound):
            oracle.ask(1, model="second")
    load.assert_clean()
    refused = oracle.verb("unload", "second")
    assert (refused.returncode, refused.stderr) == (
        68, "gpu-server: model 'second' is not served; served: Oracle\n",
    )  # fmt: skip


def test_where_two_do_not_fit_the_queue_is_held_while_they_change_places(start: StartOracle) -> None:
    oracle = start(memory=True)
    with Load(oracle) as load:
        oracle.set(version=2, memory=True)
        oracle.control.request(op="reload")
        load.more()
    load.assert_clean()
    assert set(load.versions) == {1, 2}
    assert "no room for two engines" in oracle.daemon.log


def test_with_drain_first_a_failure_brings_the_old_models_back(start: StartOracle) -> None:
    oracle = start()
    with Load(oracle) as load:
        done = oracle.verb("load", "--drain-first", "more=oracle_model:NoRoomEver")
        load.more()
    assert (done.returncode, done.stderr.partition(" (")[0]) == (
        74, "gpu-server: model 'more' fails to load: OutOfMemoryError: CUDA out of memory",
    )  # fmt: skip
    load.assert_clean()
    assert [model.name for model in oracle.daemon.client.status().models] == ["Oracle"]


def test_a_hang_up_reloads(start: StartOracle) -> None:
    oracle = start()
    oracle.set(version=2)
    oracle.daemon.process.send_signal(signal.SIGHUP)
    until(lambda: oracle.version() == 2, "the new version answers")
    assert oracle.daemon.process.poll() is None


def test_drain_refuses_until_it_is_undone_and_the_daemon_stays(start: StartOracle) -> None:
    oracle = start()
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(oracle.ask, 1, gate="gate")
        until(lambda: oracle.daemon.client.status().queue.requests == 1, "the request is accepted")
        draining = oracle.verb("drain", "--timeout-s", "0.2")
        assert (draining.returncode, "1 requests are open" in draining.stderr) == (69, True)
        with pytest.raises(ShuttingDown):
            oracle.version()
        oracle.touch("gate")
        assert version_of(accepted.result(20)) == 1
    assert oracle.verb("drain").returncode == 0
    assert oracle.verb("drain", "--undo").returncode == 0
    assert oracle.version() == 1


class Reloading:
    """A reload whose new engine has begun to load and does not end it before the file `go` is there."""

    def __init__(self, oracle: Oracle) -> None:
        oracle.set(version=2, load_gate="go")
        self.old = oracle.daemon.engine_pid()
        self._pool = ThreadPoolExecutor(1)
        self.call = self._pool.submit(oracle.control.request, op="reload")
        self.new = oracle.loading_pid()

    def __enter__(self) -> Reloading:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


def test_a_reload_is_visible_and_a_second_one_is_refused(start: StartOracle) -> None:
    oracle = start()
    with Reloading(oracle) as reload:
        assert engines(oracle) == ["ready", "loading"]
        assert oracle.daemon.client.status().engines[1].phase == "loading Oracle"
        with pytest.raises(Conflict):
            oracle.control.request(op="reload")
        assert oracle.verb("reload").returncode == 73
        oracle.touch("go")
        reload.call.result(30)
    assert (oracle.version(), engines(oracle), alive(reload.old)) == (2, ["ready"], False)


def test_the_new_engine_killed_while_it_loads_changes_nothing(start: StartOracle) -> None:
    oracle = start()
    with Load(oracle) as load, Reloading(oracle) as reload:
        os.kill(reload.new, signal.SIGKILL)
        with pytest.raises(LoadFailed, match="killed by signal 9"):
            reload.call.result(30)
        load.more()
    load.assert_clean()
    assert (oracle.version(), oracle.daemon.engine_pid()) == (1, reload.old)


def test_the_old_engine_killed_during_a_reload_costs_at_most_a_wait(start: StartOracle) -> None:
    oracle = start()
    with Load(oracle) as load, Reloading(oracle) as reload:
        os.kill(reload.old, signal.SIGKILL)
        until(lambda: not alive(reload.old), "the old engine is gone", 5)
        oracle.touch("go")
        reload.call.result(30)
        load.more()
    assert load.wrong == []
    assert {type(error) for error in load.errors} <= {EngineCrashed}
    assert (oracle.version(), oracle.daemon.engine_pid()) == (2, reload.new)


def test_the_daemon_killed_during_a_reload_leaves_neither_engine(start: StartOracle) -> None:
    oracle = start()
    with Reloading(oracle) as reload:
        os.kill(oracle.daemon.pid, signal.SIGKILL)
        oracle.daemon.wait_end(10)
        until(lambda: not alive(reload.old) and not alive(reload.new), "both engines are gone", 2.0)
        with pytest.raises(Unavailable):
            reload.call.result(10)


def test_a_stop_during_a_reload_gives_it_up_and_answers_what_was_accepted(
    start: StartOracle, socket_folder: Path
) -> None:
    oracle = start()
    with ThreadPoolExecutor(1) as pool, Reloading(oracle) as reload:
        accepted = pool.submit(oracle.ask, 7, gate="gate")
        until(lambda: oracle.daemon.client.status().queue.requests == 1, "the request is accepted")
        oracle.daemon.terminate()
        with pytest.raises(ShuttingDown):
            reload.call.result(10)
        oracle.touch("gate")
        assert version_of(accepted.result(20)) == 1
    assert oracle.daemon.wait_end() == 0
    until(lambda: not alive(reload.old) and not alive(reload.new), "both engines are gone", 2.0)
    assert [path.name for path in socket_folder.iterdir()] == ["s.lock"]
