"""Every mistake over HTTP is a clear answer at once, and a daemon that goes and comes back needs no other restart."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus import TEXTS
from running_daemon import RunningDaemon, until
from running_gunicorn import RunningGunicorn

AT_ONCE_S = 5.0
"""Far below the time-out that a request which is not refused has to wait for."""
DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
INFER = f"/v1/models/{DEFAULT}/infer"

WRONG: dict[str, tuple[str, Any, int, list[str]]] = {
    "unknown model": ("/v1/embeddings", {"model": "nope", "input": "a"}, 404, ["'nope'", DEFAULT]),
    "unknown model to run": ("/v1/models/nope/infer", {"inputs": {"x": [1]}}, 404, ["'nope'", DEFAULT]),
    "unknown route": ("/embd", {"inputs": "a"}, 404, ["/embd"]),
    "malformed": ("/embed", b'{"inputs": "a"', 400, ["malformed JSON"]),
    "not UTF-8": ("/embed", b'{"inputs": "\xff"}', 400, ["UTF-8"]),
    "not JSON": ("/v1/embeddings", b"inputs=a", 400, ["malformed JSON"]),
    "no input": ("/embed", {}, 422, ["inputs"]),
    "number for text": ("/embed", {"inputs": 7.5}, 422, ["inputs"]),
    "object among texts": ("/v1/embeddings", {"input": ["a", {}]}, 422, ["input"]),
    "wrong option": ("/embed", {"inputs": "a", "normalize": "yes"}, 422, ["normalize"]),
    "empty text": ("/embed", {"inputs": ""}, 400, ["inputs"]),
    "too many dimensions": ("/embed", {"inputs": "a", "dimensions": 385}, 422, ["dimensions", "384"]),
    "too many items": ("/embed", {"inputs": ["a"] * 2049}, 422, ["2049", "2048 (max_client_batch_size)"]),
    "too many ids": (INFER, {"inputs": {"input_ids": [[1]] * 2049}}, 413, ["2049", "max_items = 2048"]),
    "too long": ("/embed", {"inputs": "a " * 300, "truncate": False}, 422, ["max_length = 256"]),
    "too large": ("/embed", b" " * (8 << 20) + b"1", 413, ["GPU_SERVER_WEB_MAX_BODY_BYTES", str(8 << 20)]),
    "unknown id": (INFER, {"inputs": {"input_ids": [[101, 1 << 20]]}}, 422, ["token id", "30521"]),
    "wrong input name": (INFER, {"inputs": {"ids": [[101]]}}, 422, ["input_ids"]),
}


def ask_at_once(web: RunningGunicorn, path: str, body: Any) -> tuple[int, str]:
    """Status and text of an answer, which must come at once and show no internals."""
    started = time.monotonic()
    status, answer = web.ask("GET" if body is None else "POST", path, body)
    took = time.monotonic() - started
    assert took < AT_ONCE_S, f"{took:.1f} s: {answer}"
    assert "Traceback" not in str(answer)
    assert 'File "' not in str(answer)
    return status, str(answer)


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_named(web: RunningGunicorn, mistake: str) -> None:
    path, body, expected, words = WRONG[mistake]
    status, answer = ask_at_once(web, path, body)
    assert status == expected, answer
    for word in words:
        assert word in answer
    assert "Traceback" not in "".join(web.log)
    assert web.ask("POST", "/embed", {"inputs": "a"})[0] == 200


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A socket of the test's own."""
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        yield f"ipc://{folder}/s"


@pytest.mark.parametrize(
    ("how", "model", "path", "body"),
    [
        (signal.SIGTERM, [], "/embed", {"inputs": TEXTS[:8]}),
        (
            signal.SIGKILL,
            ["linear:Linear"],
            "/v1/models/Linear/infer",
            {"inputs": {"x": [[0] * 8], "nonce": [7]}},
        ),
    ],
    ids=["stopped", "killed"],
)
def test_a_daemon_that_ends_is_named_and_its_successor_found(
    endpoint: str, models_folder: Path, how: signal.Signals, model: list[str], path: str, body: Any
) -> None:
    with RunningGunicorn(endpoint) as web:
        web.ask_every_worker("GET", "/livez")
        first = serve_until_it_answers(web, endpoint, models_folder, model, path, body)
        answer = outputs(web, path, body)
        workers = web.workers()
        try:
            first.process.send_signal(how)
            first.wait_end()
            assert_unavailable(web, endpoint, path, body)
        finally:
            first.kill()
        second = serve_until_it_answers(web, endpoint, models_folder, model, path, body)
        try:
            assert outputs(web, path, body) == answer
        finally:
            second.kill()
        assert web.workers() == workers
    assert "Traceback" not in "".join(web.log)


def serve_until_it_answers(
    web: RunningGunicorn, endpoint: str, folder: Path, model: list[str], path: str, body: Any
) -> RunningDaemon:
    """A daemon that is ready; until then every request was refused at once."""
    daemon = RunningDaemon(endpoint, *model, folder=folder)

    def answered() -> bool:
        assert daemon.process.poll() is None, daemon.log
        status, answer = ask_at_once(web, path, body)
        assert status in (200, 503), answer
        return status == 200

    try:
        until(answered, "an answer", every_s=0.2)
    except BaseException:
        daemon.kill()
        raise
    return daemon


def outputs(web: RunningGunicorn, path: str, body: Any) -> Any:
    """What the model made of a body, without the timings."""
    status, answer = web.ask("POST", path, body)
    assert status == 200
    return answer["outputs"] if isinstance(answer, dict) else answer


def assert_unavailable(web: RunningGunicorn, endpoint: str, path: str, body: Any) -> None:
    """Every route says 503, where it looked and what to do, from every worker."""
    for route, content in [
        (path, body),
        ("/v1/embeddings", {"input": "a"}),
        ("/readyz", None),
        ("/health", None),
    ] * 2:
        status, answer = ask_at_once(web, route, content)
        assert status == 503
        assert endpoint in answer
        assert "gpu-server start" in answer
    assert ask_at_once(web, "/livez", None)[0] == 200
