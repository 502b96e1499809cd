"""Answers and their bytes: JSON straight from float32 arrays, and base64 vectors."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import orjson

from gpu_server.calls import Vectors

JSON = "application/json"


@dataclass(slots=True)
class Answer:
    """An HTTP response before a framework sends it."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = JSON


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """A JSON answer; C-contiguous arrays are written as nested lists, float32 in its shortest digits."""
    return Answer(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, headers or {})


def json_rows(rows: Iterable[Any], headers: dict[str, str]) -> Answer:
    """A JSON list of one row or more, each written once it is made: all at once would take ten times their bytes."""
    body, before = BytesIO(), b"["
    for row in rows:
        body.write(before)
        body.write(json_answer(row).body)
        before = b","
    body.write(b"]")
    return Answer(body.getvalue(), headers=headers)


def base64_rows(vectors: Vectors) -> list[str]:
    """Each row as base64 of its little-endian float32 bytes."""
    rows = np.ascontiguousarray(vectors, "<f4")
    return [b64encode(row).decode() for row in rows]


def json_value(value: Any) -> Any:
    """An output as JSON can carry it: strings of bytes as base64, arrays as they are."""
    if isinstance(value, list):
        return [b64encode(v).decode() if isinstance(v, bytes) else v for v in value]
    return value
