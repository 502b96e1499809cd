"""Findings on Gunicorn's settings, and the chain of imports that leads an app to torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from running_daemon import clean_environment

from gpu_server.checks import web
from gpu_server.checks.finding import Finding
from gpu_server.checks.probe import ProbeFailed
from gpu_server.errors import ConfigError

GOOD: dict[str, Any] = {
    "worker_class": "gthread",
    "timeout": 30,
    "graceful_timeout": 30,
    "web_timeout_s": 25.0,
    "guarded": True,
    "guard": "error",
    "preload_app": False,
}


def findings(**changed: Any) -> list[Finding]:
    facts = GOOD | changed
    return [found for check in web.SETTINGS if (found := check(facts)) is not None]


def test_good_settings_have_no_finding() -> None:
    assert findings() == []
    assert findings(timeout=0) == []


@pytest.mark.parametrize(
    ("changed", "severity", "words"),
    [
        ({"worker_class": "sync"}, "warning", "one request at a time"),
        ({"timeout": 25}, "warning", "timeout 25 s is not above"),
        ({"graceful_timeout": 10}, "warning", "graceful_timeout 10 s"),
        ({"guarded": False}, "info", "not installed"),
        ({"guard": "warn"}, "info", "is warn"),
        ({"preload_app": True}, "info", "in the master"),
    ],
)
def test_each_risk_is_one_finding(changed: dict[str, Any], severity: str, words: str) -> None:
    (finding,) = findings(**changed)
    assert finding.severity == severity
    assert words in finding.found


def test_a_sync_worker_that_would_be_killed_is_an_error() -> None:
    assert [f.severity for f in findings(worker_class="sync", timeout=20)] == ["warning", "error"]


def gunicorn(folder: Path, *options: str) -> web.Gunicorn:
    return web.Gunicorn(options, folder, clean_environment())


def test_gunicorn_itself_says_what_its_options_come_to(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("timeout = 12\nworker_class = 'gevent'\n")
    facts = gunicorn(tmp_path, "-c", "conf.py", "--preload", "-w", "3", "some:app").settings()
    assert facts["app"] == "some:app"
    assert (facts["timeout"], facts["worker_class"], facts["workers"]) == (12, "gevent", 3)
    assert facts["preload_app"]
    assert not facts["guarded"]
    assert gunicorn(tmp_path, "-c", "python:web.serving", "web:app").settings()["guarded"]


def test_a_misspelt_variable_of_a_gunicorn(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("app = print")
    env = clean_environment(GPU_SERVER_WEB_WORKRES="4", GPU_SERVER_MAX_ITMES="4")
    found = web.look(web.Gunicorn(["-c", "python:web.serving", "app:app"], tmp_path, env))
    assert (found[0].check, found[0].severity) == ("variables", "warning")
    assert found[0].found == "GPU_SERVER_WEB_WORKRES is unknown and sets nothing"
    assert found[0].fix == "did you mean GPU_SERVER_WEB_WORKERS?"
    assert [f.check for f in found[1:]] == ["gunicorn", "imports"]


def test_options_that_gunicorn_refuses_are_an_error(tmp_path: Path) -> None:
    (finding,) = web.look(gunicorn(tmp_path, "--timeout", "soon", "app:app"))
    assert finding.severity == "error"
    assert "soon" in finding.found
    with pytest.raises(ConfigError, match="--gunicorn"):
        web.Gunicorn.given("-c 'open")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text("import helpers\n\napp = helpers.app\n")
    (tmp_path / "helpers.py").write_text("def app(environ, start):\n    return []\n\n\nimport deep.inside\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").touch()
    (tmp_path / "deep" / "inside.py").write_text("X = 1\nimport torch.nn as nn\n")
    return tmp_path


def test_the_chain_of_imports_that_leads_to_torch(app: Path) -> None:
    (finding,) = web.imports("app:app", gunicorn(app).imports("app:app"))
    assert finding.severity == "error"
    chain = [
        "app.py:1: import helpers",
        "helpers.py:5: import deep.inside",
        "deep/inside.py:2: import torch.nn as nn",
    ]
    assert " → ".join(chain) in finding.found
    assert "gpu_server.Client" in finding.fix


def test_an_app_that_does_without_is_told_so(app: Path) -> None:
    lazy = "try:\n    import torch\nexcept ImportError:\n    torch = None\n"
    (app / "deep" / "inside.py").write_text(lazy)
    (finding,) = web.imports("app:app", gunicorn(app).imports("app:app"))
    assert finding.severity == "info"
    assert "deep/inside.py:2" in finding.found


@pytest.mark.parametrize(
    ("source", "words"),
    [("raise RuntimeError('no database')", "no database"), ("import nowhere", "nowhere")],
)
def test_an_app_that_cannot_be_imported(app: Path, source: str, words: str) -> None:
    (app / "app.py").write_text(source)
    (finding,) = web.imports("app:app", gunicorn(app).imports("app:app"))
    assert finding.severity == "error"
    assert words in finding.found


def test_an_app_that_ends_the_process_is_an_error_too(app: Path) -> None:
    (app / "app.py").write_text("import os\nos._exit(7)\n")
    with pytest.raises(ProbeFailed, match="exit code 7"):
        gunicorn(app).imports("app:app")
    found = web.look(gunicorn(app, "-c", "python:web.serving", "app:app"))
    assert [f.severity for f in found] == ["ok", "error"]


def test_a_running_master_is_read_from_proc(tmp_path: Path) -> None:
    home = tmp_path / "7"
    home.mkdir()
    (home / "cmdline").write_bytes(b"python\0/opt/bin/gunicorn\0-w\x004\0web:app\0")
    (home / "environ").write_bytes(b"A=1\0B=x=y\0")
    (home / "cwd").symlink_to(tmp_path)
    found = web.Gunicorn.running(7, tmp_path)
    assert (found.options, found.cwd, found.env) == (["-w", "4", "web:app"], tmp_path, {"A": "1", "B": "x=y"})
    (home / "cmdline").write_bytes(b"gunicorn: master [web:app]\0")
    with pytest.raises(ConfigError, match="--gunicorn 'OPTIONS APP'"):
        web.Gunicorn.running(7, tmp_path)
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        web.Gunicorn.running(os.getpid(), tmp_path)
