"""The two headers as typed structs: their annotations are the schema (PROTOCOL section 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gpu_server.wire.limits import MAX_DIMENSIONS, MAX_ELEMENTS

VERSION: Final = 1

DType = Literal[
    "bool", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f16", "bf16", "f32", "f64", "utf8", "bytes"
]
Id = Annotated[bytes, Meta(min_length=1, max_length=32)]
Scalar = bool | int | float | str
Detail = bool | int | float | str | list[str]


class Descriptor(msgspec.Struct, forbid_unknown_fields=True):
    """Name, dtype and shape of one tensor (PROTOCOL 3.1)."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    dtype: DType
    shape: Annotated[
        tuple[Annotated[int, Meta(ge=-1, le=MAX_ELEMENTS)], ...],
        Meta(min_length=1, max_length=MAX_DIMENSIONS),
    ]


class RequestHeader(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Request header (PROTOCOL 2.2); an empty or zero default means the key was left out."""

    v: Literal[1]
    id: Id
    op: Annotated[str, Meta(min_length=1, max_length=32)]
    model: Annotated[str, Meta(min_length=1, max_length=256)] = ""
    deadline_ms: Annotated[int, Meta(ge=1, le=86_400_000)] = 0
    priority: Annotated[int, Meta(ge=0, le=2)] = 1
    params: Annotated[dict[str, Scalar], Meta(max_length=16)] = {}
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] = ""
    traceparent: Annotated[str, Meta(pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")] = ""
    target: Id = b""
    inputs: Annotated[tuple[Descriptor, ...], Meta(max_length=16)] = ()
    more: Literal[False] = False


class ErrorBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An error on the wire: a code of proto/errors.json and its message."""

    code: str
    message: str
    retryable: bool
    details: dict[str, Detail] = {}


class ItemError(msgspec.Struct, forbid_unknown_fields=True):
    """One item that failed in an otherwise good reply."""

    item: Annotated[int, Meta(ge=0)]
    code: str
    message: str


class Timing(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where the time went, in microseconds, and the largest batch the request rode in."""

    queue_us: Annotated[int, Meta(ge=0)] = 0
    compute_us: Annotated[int, Meta(ge=0)] = 0
    total_us: Annotated[int, Meta(ge=0)] = 0
    batch_items: Annotated[int, Meta(ge=0)] = 0
    batch_tokens: Annotated[int, Meta(ge=0)] = 0


class ReplyHeader(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Reply header (PROTOCOL 2.3)."""

    v: Literal[1]
    id: Annotated[bytes, Meta(max_length=32)]
    error: ErrorBody | msgspec.UnsetType = msgspec.UNSET
    model: str = ""
    version: str = ""
    outputs: Annotated[tuple[Descriptor, ...], Meta(max_length=16)] = ()
    item_errors: tuple[ItemError, ...] = ()
    timing: Timing | msgspec.UnsetType = msgspec.UNSET
    more: Literal[False] = False


class _Peek(msgspec.Struct):
    """The two keys that are read even when the rest is not understood."""

    v: Any = None
    id: Any = b""


DECODE_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

pack: Callable[[RequestHeader | ReplyHeader], bytes] = msgspec.msgpack.Encoder().encode
"""Encode a header as one MessagePack map."""
unpack_request: Callable[[bytes], RequestHeader] = msgspec.msgpack.Decoder(RequestHeader).decode
"""Decode a request header strictly; raises one of `DECODE_ERRORS`."""
unpack_reply: Callable[[bytes], ReplyHeader] = msgspec.msgpack.Decoder(ReplyHeader).decode
"""Decode a reply header strictly; raises one of `DECODE_ERRORS`."""
_decode_peek = msgspec.msgpack.Decoder(_Peek).decode


def peek(data: bytes) -> tuple[object, bytes]:
    """Version and id of a header that could not be decoded; `(None, b"")` if it is not even a map with string keys."""
    try:
        seen = _decode_peek(data)
    except DECODE_ERRORS:
        return None, b""
    identifier = seen.id if isinstance(seen.id, bytes) and 1 <= len(seen.id) <= 32 else b""
    return seen.v, identifier
