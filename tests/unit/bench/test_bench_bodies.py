"""The requests that are sent: whole, of mixed lengths, always the same for a seed."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import pytest

from gpu_server.bench.bodies import requests, text
from gpu_server.bench.plan import Plan
from gpu_server.errors import ConfigError


def plan(path: str = "/embed", **given: object) -> Plan:
    return Plan(url=f"http://user@host:80{path}", connections=1, **given)  # type: ignore[arg-type]


def split(request: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first, dict(line.split(": ", 1) for line in lines), body


def test_a_request_is_whole() -> None:
    given = plan("/embed?a=b", headers=(("Authorization", "Bearer x"), ("Content-Type", "text/plain")))
    first, headers, body = split(requests(given)[0])
    assert first == "POST /embed?a=b HTTP/1.1"
    assert headers["Host"] == "host:80"
    assert headers["Authorization"] == "Bearer x"
    assert headers["Content-Type"] == "text/plain"
    assert int(headers["Content-Length"]) == len(body)


@pytest.mark.parametrize(
    ("path", "texts", "model", "field", "others"),
    [
        ("/embed", 1, "", str, {}),
        ("/embed/", 3, "m", list, {"model": "m"}),
        ("/v1/embeddings", 1, "m", str, {"model": "m"}),
        ("/embeddings", 32, "", list, {}),
    ],
)
def test_bodies_have_the_routes_shape(
    path: str, texts: int, model: str, field: type[str] | type[list[str]], others: dict[str, str]
) -> None:
    document = json.loads(split(requests(plan(path, texts=texts, model=model))[0])[2])
    given = document.pop("inputs" if path.strip("/") == "embed" else "input")
    assert isinstance(given, field)
    assert texts == (1 if isinstance(given, str) else len(given))
    assert document == others


def test_a_path_without_a_known_body_is_refused() -> None:
    with pytest.raises(ConfigError, match="no body is known for /x"):
        requests(plan("/x"))


def test_bodies_of_a_file(tmp_path: Path) -> None:
    one, many, bad, none = (tmp_path / name for name in ("a.json", "b.jsonl", "c.jsonl", "d.jsonl"))
    one.write_text('{"a":\n 1}')
    many.write_text('{"a": 1}\n\n{"a": 2}\n')
    bad.write_text('{"a": 1}\n{')
    none.write_text("\n")
    assert [split(r)[2] for r in requests(plan("/x", body_file=str(one)))] == [b'{"a":\n 1}']
    assert [split(r)[2] for r in requests(plan("/x", body_file=str(many)))] == [b'{"a": 1}', b'{"a": 2}']
    with pytest.raises(ConfigError, match="body 2: not JSON"):
        requests(plan("/x", body_file=str(bad)))
    with pytest.raises(ConfigError, match="holds no body"):
        requests(plan("/x", body_file=str(none)))


def test_lengths_are_mixed_around_the_median() -> None:
    draw = random.Random(1)
    lengths = [len(text(draw, 20, 1.3).split()) for _ in range(2000)]
    assert statistics.median(lengths) == pytest.approx(20, abs=2)
    assert statistics.mean(lengths) == pytest.approx(41.5, abs=3)
    assert (min(lengths), max(lengths)) == (1, 240)
    assert {len(text(draw, 7, 0).split()) for _ in range(20)} == {7}


def test_a_seed_gives_the_same_requests() -> None:
    assert requests(plan(seed=1)) == requests(plan(seed=1)) != requests(plan(seed=2))
