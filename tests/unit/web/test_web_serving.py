from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from web import serving

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("wanted", "concurrency", "cores", "count"),
    [(3, "5", 8, 3), (0, "5", 8, 5), (0, "", 8, 8), (0, "many", 8, 8), (0, "0", 8, 8), (0, "", 96, 16)],
)
def test_worker_count(wanted: int, concurrency: str, cores: int, count: int) -> None:
    assert serving.worker_count(wanted, concurrency, cores) == count


def test_the_root_file_is_the_shipped_one() -> None:
    conf = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
    assert conf["worker_class"] == "gthread"
    assert conf["control_socket_disable"] is True
    assert conf["timeout"] > serving.settings.timeout_s
    assert all(conf[name] is getattr(serving, name) for name in conf["__all__"])


def test_only_risky_settings_are_warned_about() -> None:
    assert serving.warnings_for("gthread", 30, 25.0) == []
    assert serving.warnings_for("gthread", 0, 25.0) == []
    assert "gthread" in serving.warnings_for("sync", 30, 25.0)[0]
    assert "--timeout" in serving.warnings_for("gevent", 25, 25.0)[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("THREADS", "lots"), ("BIND", "foo"), ("METRICS_BIND", "127.0.0.1:99999"), ("API_KEYS", "a:b:c:d"),
        ("API_KEYS_FILE", "/nonexistent/keys"),
    ],
)  # fmt: skip
def test_a_bad_variable_is_one_line_and_exit_78(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import web.serving"],
        cwd=ROOT,
        env=os.environ | {f"GPU_SERVER_WEB_{name}": value},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert f"GPU_SERVER_WEB_{name}" in done.stderr


def test_a_misspelt_variable_is_one_line_with_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_SERVER_WEB_WORKRES", "4")
    monkeypatch.setenv("GPU_SERVER_WEB_WORKERS", "2")
    lines: list[str] = []
    log = SimpleNamespace(warning=lines.append)
    serving.on_starting(SimpleNamespace(log=log, stop=lambda graceful: None))
    (line,) = (line for line in lines if "_WEB_" in line)
    assert line.startswith("GPU_SERVER_WEB_WORKRES ")
    assert line.endswith("did you mean GPU_SERVER_WEB_WORKERS?")


def test_the_master_reads_the_settings_without_the_app() -> None:
    code = "import sys, web.serving; sys.exit(any(m in sys.modules for m in ('flask', 'zmq', 'numpy', 'web.factory')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0
