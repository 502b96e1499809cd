"""`gpu-server check` and `gpu-server autoscale` as commands: what they print, and what they exit with."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gpu_server import source
from gpu_server.checks import device, probe, web
from gpu_server.checks.finding import Finding
from gpu_server.cli import autoscale, check
from gpu_server.errors import ConfigError
from gpu_server.testing import FakeServer
from gpu_server.wire.documents import State

CPU_ONLY = {"nodes": [], "kernel": False, "gpus": [], "error": ""}
TORCH = {"version": "2.13.0", "cuda": "", "devices": []}
LOADED = {
    "device": "cpu",
    "models": [{"name": "m", "kind": "custom", "dtype": "", "runs": "", "example": True}],
}


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Probes that answer without a process; the names of those that were asked."""
    asked: list[str] = []

    def run(name: str, given: Any, **options: Any) -> dict[str, Any]:
        asked.append(name)
        return {"torch_build": TORCH, "model": LOADED}[name]

    monkeypatch.setattr(probe, "run", run)
    monkeypatch.setattr(device, "read_driver", lambda: CPU_ONLY)
    monkeypatch.setattr(web, "look", lambda tier: [Finding("gunicorn", "warning", "sync", "-k gthread")])
    return asked


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(check.command, arguments)


def test_without_a_daemon_the_models_are_loaded(probed: list[str]) -> None:
    result = ran()
    assert result.exit_code == 0, result.output
    assert probed == ["torch_build", "model"]
    assert "WARNING  gunicorn   sync\n" + " " * 20 + "→ -k gthread" in result.output
    assert "m loads and runs on cpu (custom)" in result.output


def test_beside_a_daemon_that_serves_they_are_not(own_endpoint: str, probed: list[str]) -> None:
    with FakeServer(endpoint=own_endpoint):
        found = json.loads(ran("--json").output)
        assert ran("--load").exit_code == 0
    assert [f["check"] for f in found] == ["driver", "torch", "socket", "daemon", "versions", "gunicorn"]
    assert probed == ["torch_build", "torch_build", "model"]


def test_a_named_model_that_was_not_loaded_is_said_to_be(own_endpoint: str, probed: list[str]) -> None:
    with FakeServer(endpoint=own_endpoint):
        assert f"info     model      m: not loaded\n{'':>20}→ --load tries" in ran("m=org/model").output
    assert "model" not in probed


def test_beside_torch_every_other_package_is_needed(
    probed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    result = ran("--no-load")
    assert result.exit_code == 1
    assert "ERROR    model      transformers is not installed\n" in result.output


def test_an_error_is_exit_1_and_stops_what_builds_on_it(probed: list[str]) -> None:
    result = ran("no.such:Class", "--json")
    assert result.exit_code == 1
    assert "model" not in probed
    (wrong,) = [f for f in json.loads(result.output) if f["severity"] == "error"]
    assert wrong["check"] == "model"
    assert wrong["fix"]


@pytest.mark.usefixtures("probed")
def test_a_model_s_settings_are_those_of_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from gpu_server import Model\nclass Good(Model):\n    load = forward = None\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = ran("mine:Good", "--dtype", "float16", "--no-load")
    assert result.exit_code == 1
    assert "dtype is a setting of text models\n" in result.output
    assert "→ leave it out" in result.output


def test_a_probe_that_dies_is_a_finding(probed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(name: str, given: Any, **options: Any) -> dict[str, Any]:
        raise probe.ProbeFailed("killed by signal 11")

    monkeypatch.setattr(probe, "run", dies)
    result = ran("--no-load")
    assert result.exit_code == 1
    assert "importing torch ends its process: killed by signal 11" in result.output


@pytest.fixture
def no_torch(probed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the web extra alone."""

    def run(name: str, given: Any, **options: Any) -> dict[str, Any]:
        assert name == "torch_build"
        return {"error": device.ABSENT}

    monkeypatch.setattr(probe, "run", run)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("state", ["ready", "loading"])
def test_a_machine_with_web_workers_only_needs_no_torch(own_endpoint: str, state: State) -> None:
    with FakeServer(endpoint=own_endpoint) as server:
        server.state = state
        result = ran("--json")
        assert ran("--load").exit_code == 1
    found = {finding["check"]: finding for finding in json.loads(result.output)}
    assert result.exit_code == 0, result.output
    assert found["torch"]["severity"] == found["model"]["severity"] == "info"


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("arguments", [(), ("--no-load",)])
def test_nor_does_it_before_its_daemon_is_up(arguments: tuple[str, ...]) -> None:
    result = ran("--json", *arguments)
    assert result.exit_code == 0, result.output
    (model,) = [f for f in json.loads(result.output) if f["check"] == "model"]
    assert model["severity"] == "info"
    assert model["fix"].endswith(source.INSTALL_SERVER)


@pytest.mark.usefixtures("no_torch")
@pytest.mark.parametrize("arguments", [("--load",), ("served:Model",), ("--config", "{}/daemon.toml")])
def test_a_machine_that_is_to_run_models_needs_torch(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "daemon.toml").touch()
    result = ran("--json", *(argument.format(tmp_path) for argument in arguments))
    assert result.exit_code == 1
    (wrong,) = [f for f in json.loads(result.output) if f["severity"] == "error"]
    assert (wrong["check"], wrong["found"]) == ("model", "torch is not installed")
    assert wrong["fix"] == source.INSTALL_SERVER


def test_a_misspelt_variable_is_found_first(probed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_SERVER_MAX_ITMES", "5")
    result = ran("--no-load")
    assert result.exit_code == 0
    assert result.output.splitlines()[:2] == [
        "WARNING  variables  GPU_SERVER_MAX_ITMES is unknown and sets nothing",
        " " * 20 + "→ did you mean GPU_SERVER_MAX_ITEMS?",
    ]


@pytest.mark.parametrize("given", [(), ("--pid", "1", "--systemd", "a.service")])
def test_one_way_to_name_gunicorn(given: tuple[str, ...]) -> None:
    result = CliRunner().invoke(autoscale.command, given)
    assert result.exit_code == 2
    assert "--pidfile" in result.output


def test_what_names_no_gunicorn(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    for text, words in (("", "names no running process"), (f"{os.getpid()}\n", "is not Gunicorn")):
        pidfile.write_text(text)
        result = CliRunner().invoke(autoscale.command, ["--pidfile", str(pidfile)])
        assert isinstance(result.exception, ConfigError)
        assert words in str(result.exception)


def test_a_long_step_shows_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = threading.Event()

    def slow() -> list[Finding]:
        assert seen.wait(10)
        return [Finding("torch", "ok", "well")]

    shown: list[str] = []

    def note(what: str, done: float) -> None:
        shown.append(what)
        seen.set()

    monkeypatch.setattr(check.bar, "show", note)
    assert check.watched("driver and torch", 0.0, slow) == [Finding("torch", "ok", "well")]
    assert shown[0].startswith("looking at: driver and torch, ")
    assert shown[-1] == ""


def test_each_step_is_printed_when_it_is_done(probed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(check.click, "echo", lambda text: printed.append(text))
    check.command.callback(  # type: ignore[misc]
        sources=(), path=None, endpoint=None, gunicorn=web.STOCK, gunicorn_pid=None, load=None, as_json=False
    )
    assert [text.split()[1] for text in printed] == ["driver", "socket", "model", "gunicorn"]
