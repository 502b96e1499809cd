"""The requests that are sent, made before the run: mixed lengths, in the shape that the URL's path takes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_server._version import __version__
from gpu_server.bench.plan import Plan
from gpu_server.errors import ConfigError

POOL_TEXTS = 2048
MOST_BODIES = 512
LONGEST_WORDS = 240
# Frequent words: one token each in the vocabularies of English text models.
FREQUENT = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city name president team minute idea body "
    "information back parent face others level office door health person art war history party result change "
    "morning reason research girl guy"
)
WORDS = FREQUENT.split()


def requests(plan: Plan) -> list[bytes]:
    """Whole HTTP requests, to be sent in turn.

    Raises ConfigError if the body file is not JSON, or if no body is known for the URL's path.
    """
    bodies = _from_file(plan.body_file) if plan.body_file else _made(plan)
    return [_request(plan, body) for body in bodies]


def text(draw: random.Random, words: float, spread: float) -> str:
    """Words whose number is lognormal with that median and sigma, from 1 to 240."""
    count = round(words * math.exp(draw.gauss(0, spread)))
    return " ".join(draw.choices(WORDS, k=min(max(count, 1), LONGEST_WORDS)))


def _made(plan: Plan) -> list[bytes]:
    draw = random.Random(plan.seed)
    pool = max(8, min(MOST_BODIES, POOL_TEXTS // plan.texts))
    made = [[text(draw, plan.words, plan.spread) for _ in range(plan.texts)] for _ in range(pool)]
    return [json.dumps(_document(plan, texts)).encode() for texts in made]


def _document(plan: Plan, texts: Sequence[str]) -> dict[str, Any]:
    given = texts[0] if len(texts) == 1 else texts
    model = {"model": plan.model} if plan.model else {}
    match plan.target.path.rstrip("/").rpartition("/")[2]:
        case "embed":
            return {"inputs": given} | model
        case "embeddings":
            return {"input": given} | model
    raise ConfigError(
        f"no body is known for {plan.target.path}: give one with --body FILE, or use /embed or /v1/embeddings"
    )


def _from_file(name: str) -> list[bytes]:
    """The file is one JSON document, or one in each line if its name ends in .jsonl."""
    path = Path(name)
    data = path.read_bytes()
    bodies = [line for line in data.splitlines() if line.strip()] if path.suffix == ".jsonl" else [data]
    for number, body in enumerate(bodies, 1):
        try:
            json.loads(body)
        except ValueError as error:
            raise ConfigError(f"{name}, body {number}: not JSON: {error}") from None
    if not bodies:
        raise ConfigError(f"{name} holds no body")
    return bodies


def _request(plan: Plan, body: bytes) -> bytes:
    target = plan.target
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    headers = {
        "Host": target.netloc.rpartition("@")[2],
        "User-Agent": f"gpu-server-bench/{__version__}",
        "Accept": "*/*",
        "Content-Type": "application/json",
        **dict(plan.headers),
        "Content-Length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
