"""Bad input of every kind, and too much of it, over real connections: each has its answer, and the worker lives on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from running_daemon import until
from running_gunicorn import CLASSES, RunningGunicorn

from gpu_server.errors import Overloaded
from gpu_server.testing import FakeModel, FakeServer, embedding_model
from gpu_server.wire import Tensors

JSON = "content-type: application/json"
LIMIT = 1 << 16
WITHIN_S = 0.1
HUNDRED_MB = 100 << 20


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture(scope="module", params=CLASSES)
def web(daemon: FakeServer, request: pytest.FixtureRequest) -> Iterator[RunningGunicorn]:
    options = CLASSES[request.param]
    with RunningGunicorn(
        daemon.endpoint, *options, workers=1, GPU_SERVER_WEB_MAX_BODY_BYTES=str(LIMIT)
    ) as running:
        yield running


def send(
    web: RunningGunicorn, head: list[str], body: bytes, half_close: bool = False
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a request made by hand."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(web.path)
        lines = ["POST /embed HTTP/1.1", "host: x", "connection: close", *head]
        with suppress(BrokenPipeError):
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        data = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                data += part
    first, _, rest = data.partition(b"\r\n")
    fields, _, text = rest.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in fields.decode().split("\r\n"))
    return int(first.split()[1]), headers, json.loads(text)


def whole(body: bytes, *head: str) -> tuple[list[str], bytes]:
    return [*(head or [JSON]), f"content-length: {len(body)}"], body


def chunked(*chunks: bytes) -> tuple[list[str], bytes]:
    parts = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b"")]
    return [JSON, "transfer-encoding: chunked"], b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        pytest.param(whole(b'{"inputs": 3.5}'), 422, "inputs: expected", id="wrong type"),
        pytest.param(whole(b'{"inputs": ["a", {}]}'), 422, "inputs[1]: expected", id="wrong type inside"),
        pytest.param(whole(b'{"inputs": "a"'), 400, "malformed JSON", id="broken JSON"),
        pytest.param(whole(b""), 400, "malformed JSON", id="no body"),
        pytest.param(
            whole(b'{"inputs": "a"}', "content-type: text/plain"), 415, "application/json", id="type"
        ),
        pytest.param(whole(b'{"inputs": "a"}', "x-none: 1"), 415, "application/json", id="no type"),
        pytest.param(whole(b'{"x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"), 400, "deeply", id="nesting"),
        pytest.param(whole(b'{"inputs": "\xff"}'), 400, "UTF-8 at byte", id="invalid UTF-8"),
        pytest.param(whole(b'{"inputs": "\\ud800"}'), 400, "inputs: a lone surrogate", id="lone surrogate"),
        pytest.param(whole(b'{"inputs": "a", "x": NaN}'), 400, "x: NaN", id="NaN"),
        pytest.param(whole(b'{"inputs": [1' + b"0" * 400 + b"]}"), 422, "outside 0 … 257", id="huge integer"),
        pytest.param(whole(b'{"inputs": [-1]}'), 422, "outside 0 … 257", id="negative id"),
        pytest.param(whole(b'{"inputs": [258]}'), 422, "outside 0 … 257", id="id beyond the vocabulary"),
        pytest.param(whole(b'{"inputs": 1, "inputs": "a"}'), 422, "inputs: expected", id="duplicate key"),
        pytest.param(whole(b" " * (LIMIT + 1)), 413, f"{LIMIT} bytes", id="just too large"),
        pytest.param(
            ([JSON, f"content-length: {HUNDRED_MB}"], b" " * (1 << 20)), 413, f"{LIMIT} bytes", id="100 MB"
        ),
        pytest.param(chunked(b'{"inputs"', b": 3}"), 422, "inputs: expected", id="chunked"),
        pytest.param(chunked(*[b" " * 4096] * 17), 413, f"{LIMIT} bytes", id="chunked and too large"),
        pytest.param(
            ([JSON, "transfer-encoding: chunked"], b"zz\r\n{}\r\n0\r\n\r\n"), 400, "to its end", id="no chunk"
        ),
        pytest.param(whole(b"\x1f\x8b\x08", JSON, "content-encoding: gzip"), 400, "gzip", id="no gzip"),
    ],
)
def test_bad_input_is_named_and_the_worker_lives(
    web: RunningGunicorn, sent: tuple[list[str], bytes], status: int, words: str
) -> None:
    workers = web.workers()
    got, headers, answer = send(web, *sent)
    assert got == status, answer
    assert words in answer["error"]
    assert answer["error_type"] == ("Empty" if "cannot be empty" in answer["error"] else "Validation")
    assert headers["content-type"] == "application/json"
    assert web.ask("POST", "/embed", {"inputs": "a"})[0] == 200
    assert web.workers() == workers


def test_a_body_that_is_cut_short_is_named(web: RunningGunicorn) -> None:
    status, _, answer = send(web, [JSON, "content-length: 100"], b'{"inputs"', half_close=True)
    assert (status, answer["error"]) == (400, "the body ended after 9 of 100 bytes")


def test_of_equal_keys_the_last_counts(web: RunningGunicorn) -> None:
    status, _, answer = send(web, *whole(b'{"inputs": "a", "inputs": "b"}'))
    assert (status, answer) == web.ask("POST", "/embed", {"inputs": "b"})


@pytest.fixture
def full() -> Iterator[tuple[FakeServer, threading.Event]]:
    """A daemon that has room for one request, and what lets it answer that."""
    release, room = threading.Event(), threading.Semaphore(1)
    model = embedding_model()

    def one(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if not room.acquire(blocking=False):
            raise Overloaded("full", {"retry_after_ms": 1500})
        release.wait(60)
        return {"embedding": np.zeros((1, 8), np.float32)}

    with FakeServer(FakeModel(model.info, one, model.tokenizer)) as server:
        yield server, release
        release.set()


@pytest.mark.parametrize(("who", "retry_after"), [("daemon", "2"), ("worker", "1")])
def test_overload_is_429_at_once_with_retry_after(
    full: tuple[FakeServer, threading.Event], who: str, retry_after: str
) -> None:
    daemon, release = full
    limit = {"GPU_SERVER_WEB_MAX_CONCURRENT_REQUESTS": "1"} if who == "worker" else {}
    with RunningGunicorn(daemon.endpoint, *CLASSES["gthread"], workers=1, **limit) as web:
        stuck = threading.Thread(target=web.ask, args=("POST", "/embed", {"inputs": "a"}))
        stuck.start()
        until(lambda: daemon.requests.get("infer") == 1, "the first request's arrival")
        times = []
        for _ in range(10):
            began = time.monotonic()
            status, headers, answer = send(web, *whole(b'{"inputs": "a"}'))
            times.append(time.monotonic() - began)
            assert (status, headers["retry-after"]) == (429, retry_after)
            assert answer["error_type"] == "Overloaded"
        assert sorted(times)[len(times) // 2] < WITHIN_S, times
        release.set()
        stuck.join(30)
