"""What a running daemon and its web workers expose, and whether dashboard and alert rules ask for what is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest
from free_port import free_port
from prometheus_client.parser import text_string_to_metric_families
from running_daemon import ROOT, RunningDaemon, StartDaemon, until
from running_gunicorn import RunningGunicorn

from gpu_server.daemon.metrics.families import FAMILIES

pytestmark = pytest.mark.slow

GRAFANA = ROOT / "docs" / "grafana"
PROMTOOL = shutil.which("promtool")
OF_A_GPU = {family.name for family in FAMILIES if family.labels == ("gpu",)}
EXPRESSION = re.compile(r"(gpu_server_\w+)(?:\{([^}]*)\})?")


@pytest.fixture
def port() -> int:
    """A port that nobody has."""
    return free_port()


@pytest.fixture
def running(daemon: StartDaemon, port: int) -> RunningDaemon:
    return daemon("served_models:Numbers", "--metrics-port", str(port)).wait_ready()


@pytest.fixture
def web(running: RunningDaemon) -> Iterator[RunningGunicorn]:
    with RunningGunicorn(running.endpoint, workers=2) as started:
        yield started


def series(text: str) -> dict[str, set[str]]:
    """Labels by the name of every series; fails on what is not valid text."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def value(text: str, name: str, **labels: str) -> float:
    """The sum of a name's series with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def expressions() -> list[str]:
    dashboard = json.loads((GRAFANA / "dashboard.json").read_text("utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [v["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    rules = (GRAFANA / "alerts.yaml").read_text("utf-8")
    # The text of a rule's expression, folded or not, up to the key after it.
    asked += re.findall(r"^ {8}expr: (.*?)(?=^ {8}\w)", rules, re.MULTILINE | re.DOTALL)
    return asked


def test_dashboard_and_alerts_ask_for_series_that_are_there(web: RunningGunicorn) -> None:
    there = series(web.ask("GET", "/metrics")[1])
    asked = expressions()
    assert len(asked) > 35
    for expression in asked:
        names = EXPRESSION.findall(expression)
        assert names, expression
        for name, selector in names:
            assert name in there or name in OF_A_GPU, name
            used = set(re.findall(r"(\w+)=", selector))
            assert used <= there.get(name, set()), expression
        grouped = {label for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(", ")}
        assert grouped <= set().union(*(there.get(name, set()) for name, _ in names)), expression


def test_every_declared_series_is_served_before_the_first_request(web: RunningGunicorn) -> None:
    text = web.ask("GET", "/metrics")[1]
    there = series(text)
    for family in FAMILIES:
        assert f"# TYPE {family.name} {family.kind}\n" in text
        name = f"{family.name}_count" if family.kind == "histogram" else family.name
        if family.name not in OF_A_GPU:
            assert set(family.labels) <= there[name]
    assert value(text, "gpu_server_http_requests_total", route="/embed", status="503") == 0
    assert value(text, "gpu_server_web_workers") == 1
    assert value(text, "gpu_server_memory_reserved_bytes", device="cpu") > 0


def test_every_workers_requests_are_counted_once_and_outlive_it(
    web: RunningGunicorn, running: RunningDaemon
) -> None:
    path = "/v1/models/Numbers/infer"
    for _ in range(20):
        assert web.ask("POST", path, {"inputs": {"x": [1]}})[0] == 200
    assert web.ask("POST", path, {"inputs": {"y": [1]}})[0] == 422

    def counted(status: str) -> float:
        text = running.client.metrics()
        return value(
            text, "gpu_server_http_requests_total", route="/v1/models/<path:model>/infer", status=status
        )

    until(lambda: counted("200") == 20 and counted("422") == 1, "reports of all workers", wait_s=10)
    web.stop()
    until(lambda: value(running.client.metrics(), "gpu_server_web_workers") == 0, "their end", wait_s=10)
    assert (counted("200"), counted("422")) == (20, 1)


def test_the_daemons_own_port_serves_the_same(running: RunningDaemon, port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        own = answer.read().decode()
    assert series(own) == series(running.client.metrics())


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_agrees(running: RunningDaemon) -> None:
    scrape = running.client.metrics()
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=scrape, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    rules = subprocess.run(
        [str(PROMTOOL), "check", "rules", str(GRAFANA / "alerts.yaml")], capture_output=True, text=True
    )
    assert rules.returncode == 0, rules.stdout + rules.stderr
