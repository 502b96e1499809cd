"""`gpu-server check` for real: models in a process of their own, the stock Gunicorn settings, a master that runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from running_daemon import MODELS, PYTHON, clean_environment
from running_gunicorn import RunningGunicorn

WAIT_S = 120
APP = """
def app(environ, start_response):
    start_response("204 No Content", [])
    return []
"""


def check(endpoint: str, *arguments: str, cwd: Path = MODELS) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the last finding of each check."""
    done = subprocess.run(
        [PYTHON, "-m", "gpu_server", "check", "--json", *arguments],
        cwd=cwd,
        env=clean_environment(GPU_SERVER_ENDPOINT=endpoint),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.stdout, done.stderr
    return done.returncode, {finding["check"]: finding for finding in json.loads(done.stdout)}


def test_a_model_that_loads_and_the_stock_web_tier(own_endpoint: str) -> None:
    code, found = check(own_endpoint, "served_models:Numbers", "--load")
    assert code == 0, found
    assert found["model"]["severity"] in ("ok", "info")
    assert found["torch"]["severity"] == "ok"
    assert found["gunicorn"]["severity"] == "ok"
    assert found["imports"]["found"] == "web:app imports no GPU framework"


def test_a_model_that_does_not_load_is_an_error_with_its_reason(own_endpoint: str) -> None:
    code, found = check(own_endpoint, "served_models:RaisesInLoad", "--load")
    assert code == 1
    assert found["model"]["severity"] == "error"
    assert "Traceback" not in found["model"]["found"]


def test_a_running_master_and_the_app_that_imports_torch(own_endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with RunningGunicorn(own_endpoint, "-k", "sync", workers=1, app="app:app", cwd=tmp_path) as web:
        assert web.ask("GET", "/")[0] == 204
        # Since it started, somebody has added what the next worker will not survive.
        (tmp_path / "app.py").write_text("import torch\n")
        code, found = check(own_endpoint, "--no-load", "--gunicorn-pid", str(web.process.pid), cwd=tmp_path)
    assert code == 1
    assert "importing app:app imports torch" in found["imports"]["found"]
    assert "app.py:1: import torch" in found["imports"]["found"]
