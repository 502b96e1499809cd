"""Answers to bytes: JSON straight from float32 arrays, and base64 vectors."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from flask import Response

from gpu_server.calls import Vectors


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response; C-contiguous arrays are written as nested lists, float32 in its shortest digits."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, headers, mimetype="application/json")


def base64_rows(vectors: Vectors) -> list[str]:
    """Each row as base64 of its little-endian float32 bytes."""
    rows = np.ascontiguousarray(vectors, "<f4")
    return [b64encode(row).decode() for row in rows]


def json_value(value: Any) -> Any:
    """An output as JSON can carry it: strings of bytes as base64, arrays as they are."""
    if isinstance(value, list):
        return [b64encode(v).decode() if isinstance(v, bytes) else v for v in value]
    return value
