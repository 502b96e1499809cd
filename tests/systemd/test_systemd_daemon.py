"""gpu-server@.service under a real manager: start, readiness, deaths, a frozen loop, wrong settings, and the stop."""

from __future__ import annotations

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_daemon import until
from service_manager import ServiceManager

from gpu_server.client import Client
from gpu_server.errors import RemoteError, ShuttingDown, Unavailable

pytestmark = pytest.mark.slow
UNIT = "gpu-server@main"
CONNECT = """
import os, socket, sys
if sys.argv[1:]:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
socket.socket(socket.AF_UNIX).connect("/run/gpu-server/main/gpu-server.sock")
print("connected")
"""
"""Connects as root, or with an argument as a user of no group."""


def ask(client: Client, value: int, gate: str = "") -> list[int]:
    answer: list[int] = client.infer(x=[value], params={"gate": gate})["y"].tolist()  # type: ignore[union-attr]
    return answer


def runs(manager: ServiceManager, pid: int) -> bool:
    return manager.inside("ps", "-o", "stat=", "-p", str(pid), check=False)[:1] not in ("", "Z")


def test_start_returns_when_a_request_succeeds(manager: ServiceManager, client: Client) -> None:
    manager.systemctl("start", UNIT)
    assert ask(client, 4) == [9]
    assert manager.show(UNIT, "StatusText").startswith("ready: 1 model, queue 0, ")
    assert manager.inside("ps", "-o", "user=", "-p", manager.show(UNIT, "MainPID")) == "gpu-server"
    until(lambda: manager.show(UNIT, "StatusText").endswith(" 0 req/s"), "the rate of an idle daemon", 5)


def test_other_users_cannot_connect(manager: ServiceManager) -> None:
    manager.systemctl("start", UNIT)
    python = ("/opt/gpu-server/bin/python", "-c", CONNECT)
    assert manager.inside(*python, "nobody", check=False) == ""
    assert manager.inside(*python) == "connected"


def test_a_load_longer_than_the_start_time_out_is_waited_for_and_shown(
    manager: ServiceManager, client: Client
) -> None:
    manager.write("/etc/gpu-server/slow.toml", '[[models]]\nsource = "served_models:Gated"\n')
    gates = "Environment=LOAD_GATE=/opt/state/gpu-server/load WARM_GATE=/opt/state/gpu-server/load"
    manager.drop_in("gpu-server@.service", f"[Service]\nTimeoutStartSec=2\nRestart=no\n{gates}\n")
    start = manager.started("gpu-server@slow")
    until(
        lambda: manager.show("gpu-server@slow", "StatusText").startswith("loading: loading Gated ("),
        "the load is shown",
        20,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        start.wait(4)
    assert manager.show("gpu-server@slow", "ActiveState") == "activating"
    manager.inside("touch", "/opt/state/gpu-server/load")
    assert start.wait(20) == 0
    manager.systemctl("stop", "gpu-server@slow")


def test_killing_the_engine_leaves_the_unit_active(manager: ServiceManager, client: Client) -> None:
    manager.systemctl("start", UNIT)
    daemon, engine = manager.show(UNIT, "MainPID"), client.status().engines[0].pid
    manager.inside("kill", "-9", str(engine))
    until(
        lambda: client.status().state == "ready" and client.status().engines[0].pid != engine, "a new engine"
    )
    assert ask(client, 1) == [3]
    assert manager.show(UNIT, "MainPID") == daemon
    assert (manager.show(UNIT, "ActiveState"), manager.show(UNIT, "NRestarts")) == ("active", "0")


def test_killing_the_daemon_restarts_it_with_the_engine_gone_before(
    manager: ServiceManager, client: Client
) -> None:
    manager.systemctl("start", UNIT)
    daemon, engine = manager.show(UNIT, "MainPID"), client.status().engines[0].pid
    manager.inside("kill", "-9", daemon)
    until(lambda: manager.show(UNIT, "NRestarts") == "1", "the restart", 10)
    assert not runs(manager, engine)
    until(lambda: manager.show(UNIT, "ActiveState") == "active", "ready again", 20)
    assert ask(client, 2) == [5]


def test_a_frozen_loop_is_restarted_by_the_watchdog(manager: ServiceManager, client: Client) -> None:
    manager.drop_in("gpu-server@.service", "[Service]\nWatchdogSec=2\n")
    manager.systemctl("start", UNIT)
    engine = client.status().engines[0].pid
    manager.inside("kill", "-STOP", manager.show(UNIT, "MainPID"))
    until(lambda: manager.show(UNIT, "NRestarts") == "1", "the watchdog's restart", 2 + 2)
    assert not runs(manager, engine)
    until(lambda: manager.show(UNIT, "ActiveState") == "active", "ready again", 20)
    assert ask(client, 3) == [7]


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        ("[limits]\nmax_itmes = 3\n", "78", "[limits] key 'max_itmes' is unknown; did you mean 'max_items'?"),
        ('[[models]]\nsource = "/nowhere/model"\n', "66", "model folder /nowhere/model does not exist"),
        ('[[models]]\nsource = "served_models:Nothing"\n', "65", "served_models"),
    ],
)
def test_a_wrong_setting_fails_once_and_says_which(
    manager: ServiceManager, settings: str, code: str, says: str
) -> None:
    manager.write("/etc/gpu-server/wrong.toml", settings)
    manager.systemctl("start", "gpu-server@wrong", check=False)
    unit = "gpu-server@wrong"
    assert manager.show(unit, "ActiveState") == "failed"
    assert manager.show(unit, "ExecMainStatus") == code
    assert says in manager.show(unit, "StatusText")
    assert manager.show(unit, "NRestarts") == "0"


def test_a_model_that_cannot_be_loaded_is_not_tried_for_ever(manager: ServiceManager) -> None:
    manager.write("/etc/gpu-server/broken.toml", '[[models]]\nsource = "served_models:RaisesInLoad"\n')
    manager.drop_in("gpu-server@.service", "[Unit]\nStartLimitBurst=2\n[Service]\nRestartSec=0\n")
    manager.systemctl("start", "gpu-server@broken", check=False)
    unit = "gpu-server@broken"
    until(lambda: manager.show(unit, "ActiveState") == "failed", "the start limit", 40)
    # The second restart is counted, and refused.
    assert (manager.show(unit, "ExecMainStatus"), manager.show(unit, "NRestarts")) == ("70", "2")
    assert "weights.bin is truncated" in manager.show(unit, "StatusText")


class Callers:
    """Threads that ask without a pause; every answer is checked."""

    def __init__(self, client: Client, threads: int = 4) -> None:
        self.answered = 0
        self.errors: list[RemoteError] = []
        self.wrong: list[object] = []
        self._client = client
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n * 10**6,)) for n in range(threads)]

    def _run(self, value: int) -> None:
        while not self._stop.is_set():
            value += 1
            try:
                got = ask(self._client, value)
            except RemoteError as error:
                self.errors.append(error)
                self._stop.wait(0.01)
                continue
            self.answered += 1
            if got != [2 * value + 1]:
                self.wrong.append((value, got))

    def more(self) -> None:
        target = self.answered + 50
        until(lambda: self.answered >= target, "50 more answers")

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def test_a_stop_under_load_loses_nothing_accepted(manager: ServiceManager, client: Client) -> None:
    manager.systemctl("start", UNIT)
    gate = "/opt/state/gpu-server/gate"
    with Callers(client) as callers, ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(ask, client, value, gate) for value in range(8)]
        until(lambda: client.status().queue.requests >= 8, "open requests", 20)
        manager.systemctl("stop", "--no-block", UNIT)
        until(lambda: client.status().state == "draining", "the drain", 10)
        assert manager.show(UNIT, "ActiveState") == "deactivating"
        manager.inside("touch", gate)
        assert [future.result(20) for future in accepted] == [[2 * value + 1] for value in range(8)]
        until(lambda: manager.show(UNIT, "ActiveState") == "inactive", "the end", 20)
    assert manager.show(UNIT, "Result") == "success"
    assert callers.wrong == []
    assert {type(error) for error in callers.errors} <= {ShuttingDown, Unavailable}


def test_a_reload_under_load_loses_nothing(manager: ServiceManager, client: Client) -> None:
    manager.systemctl("start", UNIT)
    daemon, engine = manager.show(UNIT, "MainPID"), client.status().engines[0].pid
    with Callers(client) as callers:
        manager.systemctl("reload", UNIT)
        callers.more()
    assert client.status().engines[0].pid != engine
    assert (manager.show(UNIT, "MainPID"), manager.show(UNIT, "ActiveState")) == (daemon, "active")
    assert (callers.wrong, callers.errors) == ([], [])


def test_a_reload_that_fails_says_so_and_the_old_model_serves_on(
    manager: ServiceManager, client: Client
) -> None:
    source = "/opt/state/gpu-server/served_models.py"
    manager.systemctl("start", UNIT)
    manager.inside("cp", source, f"{source}.good")
    manager.inside("sed", "-i", "s/self.two = .*/raise OSError('weights are damaged')/", source)
    try:
        with pytest.raises(AssertionError, match="failed"):
            manager.systemctl("reload", UNIT)
    finally:
        manager.inside("mv", f"{source}.good", source)
    assert (manager.show(UNIT, "ActiveState"), manager.show(UNIT, "NRestarts")) == ("active", "0")
    assert ask(client, 5) == [11]


def test_with_the_socket_unit_a_restart_refuses_nobody(manager: ServiceManager, client: Client) -> None:
    manager.systemctl("start", "gpu-server@main.socket")
    path = manager.run / "gpu-server/main/gpu-server.sock"
    before = path.stat()
    assert (oct(before.st_mode & 0o777), manager.show(UNIT, "ActiveState")) == ("0o660", "inactive")
    assert ask(client, 1) == [3], "the first request starts the daemon and waits for its load"
    until(lambda: manager.show(UNIT, "ActiveState") == "active", "the start on first use", 20)
    with Callers(client) as callers:
        for _ in range(3):
            first = manager.show(UNIT, "MainPID")
            manager.systemctl("restart", UNIT)
            assert manager.show(UNIT, "MainPID") != first
            callers.more()
    assert path.stat().st_ino == before.st_ino
    assert (callers.wrong, callers.errors) == ([], [])
