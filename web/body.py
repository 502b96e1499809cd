"""Request body to typed struct; says precisely what is wrong with one that does not fit."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec
from flask import request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from web.errors import BadField

T = TypeVar("T")
MAX_LISTS = 1 << 16
"""Lists in a body of texts: more than any daemon's `max_items`, and few enough to cost little."""

# Brackets inside strings do not count. Possessive throughout, so its time is linear in the body.
_MANY_LISTS = re.compile(rb'(?:(?:[^\["]++|"(?:[^"\\]++|\\.)*+")*+\[){%d}+' % (MAX_LISTS + 1), re.DOTALL)
_MISSING = re.compile("Object missing required field `(.+)`")


def read(kind: type[T], texts: str = "") -> T:
    """The request's JSON body as a `kind`, a msgspec struct; keys it does not declare are ignored.

    texts: the field of a body whose lists are texts and their ids; more than MAX_LISTS are refused before they cost memory.
    Ends the request with 415 if its content type is not JSON, 413 if it exceeds the limit, 400 if it is malformed and 422,
    naming the field, if its shape is wrong.
    """
    if not request.is_json:
        raise UnsupportedMediaType("the body must be JSON, sent as content-type: application/json")
    data = request.get_data(cache=False)
    if request.content_length is None and len(data) == request.max_content_length:
        _refuse_more()
    if texts and data.count(b"[") > MAX_LISTS and _MANY_LISTS.match(data):
        raise BadField(texts, f"more than {MAX_LISTS} lists in the body")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _bad_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"malformed JSON: {_fault(data) or error}") from None


def _refuse_more() -> None:
    """Werkzeug ends a body of unknown length at the limit without a word; what is left tells that it was cut."""
    if request.environ["wsgi.input"].read(1):
        raise RequestEntityTooLarge


def _bad_field(message: str) -> BadField:
    """«Expected `int`, got `str` - at `$.a[1]`» as field `a[1]` and the rest."""
    if missing := _MISSING.fullmatch(message):
        return BadField(missing[1], "required, and missing")
    what, _, path = message.partition(" - at `$")
    return BadField(path.rstrip("`").lstrip("."), what[:1].lower() + what[1:])


def _fault(data: bytes) -> str:
    """Where a lenient parser finds what a strict one refused without naming the field; "" if it is no better."""
    try:
        return _find(json.loads(data.decode()), "")
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 at byte {error.start}"
    except RecursionError:
        return "nested too deeply"
    except ValueError:
        return ""


def _find(value: Any, path: str) -> str:
    if isinstance(value, str):
        surrogate = any("\ud800" <= c <= "\udfff" for c in value)
        return f"{path}: a lone surrogate, which UTF-8 cannot carry" if surrogate else ""
    if isinstance(value, float):
        return "" if abs(value) < float("inf") else f"{path}: NaN and infinities are not JSON"
    parts: list[tuple[str, Any]] = []
    if isinstance(value, list):
        parts = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    elif isinstance(value, dict):
        parts = [(f"{path}.{k}".lstrip("."), v) for k, v in value.items()]
    return next((fault for name, part in parts if (fault := _find(part, name))), "")
