from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

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


def test_a_bad_variable_is_one_line_and_exit_78() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import web.serving"],
        cwd=ROOT,
        env=os.environ | {"GPU_SERVER_WEB_THREADS": "lots"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "GPU_SERVER_WEB_THREADS" in done.stderr


def test_the_master_reads_the_settings_without_the_app() -> None:
    code = "import sys, web.serving; sys.exit(any(m in sys.modules for m in ('flask', 'zmq', 'numpy', 'web.factory')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0
