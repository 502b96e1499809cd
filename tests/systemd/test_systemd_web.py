"""gpu-web@.service under a real manager: it cannot reach a device, and outlives the daemon."""

from __future__ import annotations

import http.client
import json
import statistics
import time

import pytest
from running_daemon import until
from service_manager import ServiceManager

pytestmark = pytest.mark.slow
DEVICES = {
    "char", "fd", "full", "hugepages", "log", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr",
    "stdin", "stdout", "tty", "urandom", "zero", "core", "console",
}  # fmt: skip
"""What PrivateDevices= leaves in /dev."""


def post(port: int, value: int = 3) -> tuple[int, str | None, float]:
    """Status, Retry-After and seconds of one inference over HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    started = time.monotonic()
    body = json.dumps({"inputs": {"x": [value]}})
    connection.request("POST", "/v1/models/Numbers/infer", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    seconds = time.monotonic() - started
    connection.close()
    assert answer.status != 200 or json.loads(text)["outputs"]["y"] == [2 * value + 1]
    return answer.status, answer.getheader("retry-after"), seconds


def test_it_answers_without_the_daemon_and_recovers_by_itself(manager: ServiceManager, web_port: int) -> None:
    manager.systemctl("start", "gpu-web@main")
    assert manager.show("gpu-server@main", "ActiveState") == "active"
    assert post(web_port)[0] == 200
    workers = manager.inside("pgrep", "-f", "gunicorn")
    manager.systemctl("stop", "gpu-server@main")
    refused = [post(web_port) for _ in range(10)]
    assert {(status, retry is not None) for status, retry, _ in refused} == {(503, True)}
    assert sorted(seconds for _, _, seconds in refused)[8] < 0.05
    manager.systemctl("start", "gpu-server@main")
    until(lambda: post(web_port)[0] == 200, "answers again", 10)
    assert manager.inside("pgrep", "-f", "gunicorn") == workers


def test_it_stays_up_while_the_daemon_is_killed_and_comes_back(
    manager: ServiceManager, web_port: int
) -> None:
    manager.systemctl("start", "gpu-web@main")
    assert post(web_port)[0] == 200
    manager.inside("kill", "-9", manager.show("gpu-server@main", "MainPID"))
    # systemd starts it again after a second.
    end = time.monotonic() + 0.8
    refused = []
    while time.monotonic() < end:
        refused.append(post(web_port))
    assert {(status, retry is not None) for status, retry, _ in refused} == {(503, True)}
    assert statistics.median(seconds for _, _, seconds in refused) < 0.05
    assert max(seconds for _, _, seconds in refused) < 0.5
    until(lambda: post(web_port)[0] == 200, "answers again", 20)
    assert manager.show("gpu-web@main", "NRestarts") == "0"


def test_its_users_and_devices(manager: ServiceManager, web_port: int) -> None:
    manager.systemctl("start", "gpu-web@main")
    pid = manager.show("gpu-web@main", "MainPID")
    assert manager.inside("ps", "-o", "user=", "-p", pid) == "gpu-web"
    devices = set(manager.inside("ls", f"/proc/{pid}/root/dev").split())
    assert {"null", "urandom"} <= devices <= DEVICES
    # Without any capability it cannot make a device node either.
    assert "CapBnd:\t0000000000000000" in manager.inside("cat", f"/proc/{pid}/status")


def test_with_its_socket_unit_connections_wait_for_it(manager: ServiceManager, web_port: int) -> None:
    manager.systemctl("start", "gpu-server@main", "gpu-web@main.socket")
    assert manager.show("gpu-web@main", "ActiveState") == "inactive"
    assert post(web_port)[0] == 200
    manager.systemctl("restart", "gpu-web@main")
    assert post(web_port)[0] == 200
