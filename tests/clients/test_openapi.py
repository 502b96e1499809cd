"""The OpenAPI document against a live server: requests made from it, good and bad, get the answers it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
from openapi_spec_validator import OpenAPIV31SpecValidator
from running_gunicorn import RunningGunicorn

KEY = "Bearer right"
# A slow machine may take long over as many inputs as a body may have; that is no finding.
SERVER = {"GPU_SERVER_WEB_API_KEYS": "right", "GPU_SERVER_WEB_TIMEOUT_S": "120"}
SETTINGS = Path(__file__).with_name("schemathesis.toml")


def test_the_document_is_openapi_3_1(url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    assert document["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_schemathesis_finds_nothing(daemon_endpoint: str, tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", SETTINGS, "--no-color", "run"]
    options = ["--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--seed", "1"]
    with RunningGunicorn(daemon_endpoint, workers=2, **SERVER) as running:
        done = subprocess.run(
            [*command, f"{running.url}/openapi.json", "--header", f"Authorization: {KEY}", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        log = "".join(running.log)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr + log
    assert "Traceback" not in log
