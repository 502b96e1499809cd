"""What is said of a hub that gives nothing, and which of its refusals may pass."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import errors
from running_daemon import clean_environment

from gpu_server.models.text import hub

ANSWERS = {
    "unknown": (404, {"X-Error-Code": "RepoNotFound"}),
    "hidden": (401, {}),
    "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "forbidden": (403, {}),
    "busy": (429, {}),
    "down": (503, {}),
}
UNKNOWN = "the hub has no such model, or only for those who may see it: set HF_TOKEN"
SAID = {
    "unknown": (66, UNKNOWN),
    "hidden": (66, UNKNOWN),
    "token": (66, UNKNOWN),
    "gated": (66, "the hub gives it only to those it has let in: set HF_TOKEN"),
    "revision": (66, "the hub has no such revision of it"),
    "forbidden": (66, "the hub answered with HTTP 403"),
    "busy": (70, "the hub answered with HTTP 429"),
    "down": (70, "the hub answered with HTTP 503"),
}
ASK = """
import sys
from gpu_server.errors import GPUServerError
from gpu_server.models.text import source
for name in sys.argv[1:]:
    try:
        source.find(f"org/{name}")
    except GPUServerError as error:
        print(name, error.exit_code, str(error).partition("cache, and ")[2], sep="|")
"""


class Hub(BaseHTTPRequestHandler):
    """Answers every question about org/NAME as `ANSWERS` says."""

    def do_GET(self) -> None:
        name = next(part for part in self.path.split("/") if part in ANSWERS)
        status, headers = ANSWERS[name]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The URL of a hub that has nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def asked(endpoint: str, home: Path, *names: str) -> dict[str, tuple[int, str]]:
    """Exit code and reason for each model, from a process of its own: huggingface_hub reads its variables once."""
    environment = clean_environment(HF_ENDPOINT=endpoint, HF_HOME=str(home), HF_HUB_OFFLINE="0", NO_PROXY="*")
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {name: (int(code), said) for name, code, said in rows}


def test_what_a_hub_answers_is_said_in_plain_words(endpoint: str, tmp_path: Path) -> None:
    assert asked(endpoint, tmp_path, *ANSWERS) == SAID


def test_a_hub_that_does_not_listen_may_do_so_later(tmp_path: Path) -> None:
    found = asked("http://127.0.0.1:1", tmp_path, "unknown")
    assert found == {"unknown": (70, "the hub could not be reached")}


def offline() -> errors.LocalEntryNotFoundError:
    """As `snapshot_download` hands on why the hub was not asked."""
    error = errors.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")
    error.__cause__ = errors.OfflineModeIsEnabled("offline")
    return error


@pytest.mark.parametrize(
    ("error", "said", "may_recover"),
    [
        (offline(), "the hub is not asked, as HF_HUB_OFFLINE is set", False),
        (TimeoutError("read"), "the hub could not be reached", True),
        (PermissionError(13, "Permission denied"), "the hub did not give it ([Errno 13] Permission denied)", False),
        (ValueError("first\nsecond"), "the hub did not give it (first)", False),
        (OSError(), "the hub did not give it (OSError)", False),
    ],
)  # fmt: skip
def test_what_fails_here_is_told_from_the_hub(error: Exception, said: str, may_recover: bool) -> None:
    assert (hub.refusal(error), hub.may_recover(error)) == (said, may_recover)
