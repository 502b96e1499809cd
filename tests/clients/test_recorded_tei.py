"""TEI's exchanges replayed: ours differ from them in what DIFFERENCES lists, each an improvement, and in nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import httpx
import pytest
from running_gunicorn import RunningGunicorn
from tei_exchanges import ANY, EMPTY, EXCHANGES, PLAIN, TIMES, VECTORS, Exchange, error

NAMES = {"embedding": "all-MiniLM-L6-v2", "reranker": "reranker", "classifier": "classifier"}
OPENAI_ERROR = {"error": {"message": "text", "type": "text", "param": "text?", "code": "text"}}


class Difference(NamedTuple):
    """What of our answer is another, and why."""

    why: str
    changes: dict[str, Any]


def as_json(kind: str = "Validation") -> Difference:
    """The same status, with a body that clients can decode."""
    return Difference("every error is JSON and says what is wrong", {"shape": error(kind)})


DIFFERENCES = {
    "more texts than a client may send": Difference(
        "split into batches here; the limit is 2048 texts",
        {"status": 200, "shape": VECTORS, "headers": TIMES},
    ),
    "openai, another model's name": Difference(
        "no vectors of a model that was not asked for; the error names those that are served",
        {"status": 404, "shape": OPENAI_ERROR, "headers": ()},
    ),
    "openai, an empty text": Difference("the shape that OpenAI's own clients read", {"shape": OPENAI_ERROR}),
    "three texts where a pair is": as_json(),
    "a wrong type": as_json(),
    "a missing field": as_json(),
    "broken JSON": as_json(),
    "no content type": as_json(),
    "another content type": as_json(),
    "too large a body": as_json(),
    "a wrong method": as_json(),
    "no such route": as_json(),
    "without the key": as_json("Unauthorized"),
    "with a wrong key": as_json("Unauthorized"),
}
LOCKED = [
    Exchange("without the key", "/embed", {"inputs": "x"}, 401),
    Exchange("with a wrong key", "/embed", {"inputs": "x"}, 401),
    Exchange("with the key", "/embed", {"inputs": "x"}, shape=VECTORS),
    Exchange("health without the key", "/health", method="GET"),
]
KEYS = {"with a wrong key": "Bearer wrong", "with the key": "Bearer right"}


@pytest.fixture(scope="module")
def locked(daemon_endpoint: str) -> Iterator[str]:
    """The URL of a worker that wants a key."""
    with RunningGunicorn(daemon_endpoint, workers=1, GPU_SERVER_WEB_API_KEYS="right") as running:
        yield running.url


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.name)
def test_ours_is_teis_but_for_the_listed_differences(url: str, exchange: Exchange) -> None:
    compare(exchange, url)


@pytest.mark.parametrize("exchange", LOCKED, ids=lambda exchange: exchange.name)
def test_the_key_is_asked_where_tei_asks_it(locked: str, exchange: Exchange) -> None:
    compare(exchange, locked, KEYS.get(exchange.name))


def test_each_difference_is_of_an_exchange() -> None:
    assert DIFFERENCES.keys() <= {exchange.name for exchange in [*EXCHANGES, *LOCKED]}


def compare(exchange: Exchange, url: str, key: str | None = None) -> None:
    answer = sent(exchange, url, key)
    if difference := DIFFERENCES.get(exchange.name):
        assert mismatches(exchange, answer), "no longer another answer than TEI's: take it off the list"
        exchange = replace(exchange, **difference.changes)
    assert mismatches(exchange, answer) == []


def sent(exchange: Exchange, url: str, key: str | None) -> httpx.Response:
    path = f"/models/{NAMES[exchange.model]}{exchange.path}" if exchange.model else exchange.path
    body = exchange.body
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {"content-type": exchange.content_type} if data is not None and exchange.content_type else {}
    if key:
        headers["authorization"] = key
    return httpx.request(exchange.method, f"{url}{path}", content=data, headers=headers, timeout=30)


def mismatches(exchange: Exchange, answer: httpx.Response) -> list[str]:
    """How an answer is not that of an exchange."""
    found = []
    if answer.status_code != exchange.status:
        found.append(f"status {answer.status_code}, not {exchange.status}: {answer.text[:200]}")
    if lacking := [name for name in exchange.headers if name not in answer.headers]:
        found.append(f"without {', '.join(lacking)}")
    return found + list(body_mismatches(exchange.shape, answer))


def body_mismatches(shape: Any, answer: httpx.Response) -> Iterator[str]:
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    if shape == EMPTY:
        if answer.content:
            yield f"a body: {answer.text[:200]}"
    elif is_json == (shape == PLAIN):
        yield f"content type {answer.headers.get('content-type')!r}"
    elif is_json and shape != ANY:
        yield from shape_mismatches(shape, answer.json(), "body")


def shape_mismatches(shape: Any, value: Any, where: str) -> Iterator[str]:
    """Where a JSON value has not the shape that tei_exchanges describes."""
    match shape, value:
        case list(), list():
            for number, element in enumerate(value):
                yield from shape_mismatches(shape[0], element, f"{where}[{number}]")
        case dict(), dict():
            if shape.keys() != value.keys():
                yield f"{where} has {sorted(value)}, not {sorted(shape)}"
            for name in shape.keys() & value.keys():
                yield from shape_mismatches(shape[name], value[name], f"{where}.{name}")
        case str(), _ if kind_matches(shape, value):
            pass
        case _:
            yield f"{where} is {str(value)[:60]}, not {shape}"


def kind_matches(kind: str, value: Any) -> bool:
    if value is None:
        return kind.endswith("?")
    match kind.removesuffix("?"):
        case "text":
            return isinstance(value, str)
        case "flag":
            return isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
    return kind.startswith("=") and value == kind[1:]


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        ("text", 1), ("number", True), ("number", None), ("flag", 0), ("=a", "b"), (["text"], "a"), (["text"], ["a", 1]),
        ({"a": "text"}, {}), ({"a": "text"}, {"a": "x", "b": 1}), ({"a": ["number?"]}, {"a": [None, "x"]}),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_seen(shape: Any, value: Any) -> None:
    assert list(shape_mismatches(shape, value, "body"))
