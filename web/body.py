"""Request body to typed struct; says precisely what is wrong with one that does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from web.call import Call
from web.encoding import JSON
from web.errors import BadField

T = TypeVar("T")
MAX_LISTS = 1 << 16
"""Lists and objects in a body: more than any daemon's `max_items`, and few enough to cost little."""
SEE = "the API's page /docs shows the body that this route takes"

# Brackets inside strings do not count. Possessive throughout, so its time is linear in the body.
_MANY_LISTS = re.compile(rb'(?:(?:[^\[{"]++|"(?:[^"\\]++|\\.)*+")*+[\[{]){%d}+' % (MAX_LISTS + 1), re.DOTALL)
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}
_MISSING = re.compile("Object missing required field `(.+)`")


def read(call: Call, kind: type[T], lists: str = "") -> T:
    """The request's JSON body as a `kind`, a msgspec struct; other keys are ignored, of equal ones the last counts.

    lists: the field of a body that may hold lists in a list; more than MAX_LISTS are refused before they cost memory.
    Ends the request with 415 if its content type is not JSON, 413 if it exceeds the limit, 400 if it is malformed and 422,
    naming the field, if its shape is wrong.
    """
    if not is_json(call.mimetype):
        raise UnsupportedMediaType("the body must be JSON, sent as content-type: application/json")
    return decode(call.body(), kind, lists)


def is_json(mimetype: str) -> bool:
    """Whether a content type is JSON: its own or a +json form of it."""
    return mimetype == JSON or (mimetype.startswith("application/") and mimetype.endswith("+json"))


def decode(data: bytes, kind: type[T], lists: str = "") -> T:
    """JSON as a `kind`; as `read`, less what belongs to the request."""
    if lists and data.count(b"[") + data.count(b"{") > MAX_LISTS and _MANY_LISTS.match(data):
        raise BadField(lists, f"more than {MAX_LISTS} lists and objects in the body")
    try:
        value: T = _decoder(kind).decode(data)
    except msgspec.ValidationError as error:
        raise bad_field(error, data, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = _fault(data) or str(error).removeprefix("JSON is malformed: ")
        raise BadRequest(f"malformed JSON: {what}") from None
    return value


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return _DECODERS.get(kind) or _DECODERS.setdefault(kind, msgspec.json.Decoder(kind))


def bad_field(
    error: msgspec.ValidationError, data: bytes, kind: Any, parse: Callable[..., Any] = msgspec.json.decode
) -> BadField:
    """What is wrong with `data`, which is no `kind`.

    «Expected `int`, got `str` - at `$.a[1]`» becomes field `a[1]` and the rest.
    """
    message = str(error)
    if missing := _MISSING.fullmatch(message):
        return BadField(missing[1], f"required, and missing; {SEE}")
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    # What follows the mistake may be malformed, and the last of equal keys another.
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        path = _with_key(path, data, kind, parse)
    return BadField(path, f"{what[:1].lower()}{what[1:]}; {SEE}")


def _with_key(path: str, data: bytes, kind: Any, parse: Callable[..., Any]) -> str:
    """`inputs.x[0]` for `inputs[...][0]`: msgspec leaves out under which key of an object it found a mistake."""
    field, unnamed, rest = path.partition("[...]")
    hint = get_type_hints(kind, include_extras=True).get(field) if field and unnamed else kind
    if not unnamed or hint is None:
        return path
    of = get_args(get_args(hint)[0] if get_origin(hint) is Annotated else hint)[1]
    values = parse(data, type=dict[str, msgspec.Raw])
    if field:
        values = parse(values[field], type=dict[str, msgspec.Raw])
    for key, value in values.items():
        try:
            parse(value, type=of)
        except msgspec.ValidationError:
            return f"{field}.{key}{rest}".lstrip(".")
    return path


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
