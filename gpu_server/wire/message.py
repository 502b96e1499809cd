"""Whole messages: frames to header and tensors, and back, checked strictly (PROTOCOL sections 1 to 3)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from math import prod
from typing import NoReturn

import msgspec

from gpu_server.errors import ProtocolError
from gpu_server.wire.header import (
    DECODE_ERRORS,
    VERSION,
    Descriptor,
    ErrorBody,
    ItemError,
    ReplyHeader,
    RequestHeader,
    Timing,
    pack,
    peek,
    unpack_reply,
    unpack_request,
)
from gpu_server.wire.limits import MAX_ELEMENTS, MAX_REPLY_HEADER_BYTES, MAX_REQUEST_HEADER_BYTES, Limits
from gpu_server.wire.tensor import ITEMSIZE, STRING_DTYPES, Buffer, Tensor

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("gpu_server.wire reads frames in place and needs a little-endian machine")

Tensors = dict[str, Tensor]

FAREWELL_ANSWER = (b"", b"")
"""The frames of a client's answer to the farewell (PROTOCOL 4.7): the delimiter, and a header that says nothing."""


def encode_request(
    header: RequestHeader,
    inputs: Mapping[str, Tensor] | None = None,
    max_header_bytes: int = MAX_REQUEST_HEADER_BYTES,
) -> list[Buffer]:
    """Frames of a request, delimiter included; sets the header's descriptors. Raises ProtocolError over the header limit."""
    frames: list[Buffer] = [b"", b""]
    if inputs:
        header.inputs = _describe(inputs, frames)
    frames[1] = pack(header)
    if len(frames[1]) > max_header_bytes:
        raise ProtocolError(f"request header of {len(frames[1])} bytes exceeds {max_header_bytes}", header.id)
    return frames


def encode_reply(header: ReplyHeader, outputs: Mapping[str, Tensor] | None = None) -> list[Buffer]:
    """Frames of a reply, delimiter included; sets the header's descriptors.

    Where the header would exceed its limit, error details are left out and messages cut; raises ProtocolError if that
    does not help.
    """
    frames: list[Buffer] = [b"", b""]
    if outputs:
        header.outputs = _describe(outputs, frames)
    raw = pack(header)
    if len(raw) > MAX_REPLY_HEADER_BYTES:
        raw = pack(_shortened(header))
        if len(raw) > MAX_REPLY_HEADER_BYTES:
            raise ProtocolError(
                f"reply header of {len(raw)} bytes exceeds {MAX_REPLY_HEADER_BYTES}", header.id
            )
    frames[1] = raw
    return frames


def error_reply(
    request_id: bytes,
    code: str,
    message: str,
    retryable: bool = False,
    details: dict[str, object] | None = None,
    timing: Timing | msgspec.UnsetType = msgspec.UNSET,
) -> list[Buffer]:
    """Frames of an error reply; `details` may hold scalars and lists of strings."""
    body = ErrorBody(code, message, retryable, details or {})  # type: ignore[arg-type]
    return encode_reply(ReplyHeader(v=VERSION, id=request_id, error=body, timing=timing))


def decode_request(
    frames: Sequence[Buffer], limits: Limits, max_header_bytes: int = MAX_REQUEST_HEADER_BYTES
) -> tuple[RequestHeader, Tensors]:
    """Header and inputs of a request; raises ProtocolError, whose `request_id` is empty when it could not be read."""
    if len(frames) < 2 or len(frames[0]):
        raise ProtocolError("a message is [empty] [header] [frame …]")
    raw = bytes(frames[1])
    if len(raw) > max_header_bytes:
        raise ProtocolError(f"header of {len(raw)} bytes exceeds {max_header_bytes}")
    try:
        header = unpack_request(raw)
    except DECODE_ERRORS as error:
        raise _header_error(raw, error) from None
    if header.inputs or len(frames) > 2:
        try:
            return header, _read(header.inputs, frames, limits)
        except ProtocolError as error:
            error.request_id = header.id
            raise
    return header, {}


def refuse_cut(frames: Sequence[Buffer], limits: Limits) -> NoReturn:
    """Raise the ProtocolError for a request of which only the first frames were read, because it is over the limits."""
    # A header over its own limit is not decoded: it can take a hundred times its size.
    readable = len(frames) > 1 and len(frames[1]) <= MAX_REQUEST_HEADER_BYTES
    _, request_id = peek(bytes(frames[1])) if readable else (None, b"")
    raise ProtocolError(
        f"a request holds at most max_request_bytes = {limits.max_request_bytes}, in two frames for each of 16 tensors",
        request_id,
        "too_large",
        {"limit": "max_request_bytes"},
    )


def decode_reply(frames: Sequence[Buffer]) -> tuple[ReplyHeader, Tensors]:
    """Header and outputs of a reply; raises ProtocolError."""
    if len(frames) < 2 or len(frames[0]):
        raise ProtocolError("a message is [empty] [header] [frame …]")
    raw = bytes(frames[1])
    if len(raw) > MAX_REPLY_HEADER_BYTES:
        raise ProtocolError(f"reply header of {len(raw)} bytes exceeds {MAX_REPLY_HEADER_BYTES}")
    try:
        header = unpack_reply(raw)
    except DECODE_ERRORS as error:
        raise _header_error(raw, error) from None
    try:
        return header, _read(header.outputs, frames, None)
    except ProtocolError as error:
        error.request_id = header.id
        raise


def _describe(tensors: Mapping[str, Tensor], frames: list[Buffer]) -> tuple[Descriptor, ...]:
    descriptors = []
    for name, tensor in tensors.items():
        descriptors.append(Descriptor(name, tensor.dtype, tensor.shape))  # type: ignore[arg-type]
        frames += tensor.frames()
    return tuple(descriptors)


def _shortened(header: ReplyHeader) -> ReplyHeader:
    items = tuple(ItemError(e.item, e.code, e.message[:16]) for e in header.item_errors)
    error = header.error
    if error is not msgspec.UNSET:
        error = ErrorBody(error.code, error.message[:1024], error.retryable)
    return msgspec.structs.replace(header, item_errors=items, error=error)


def _header_error(raw: bytes, error: Exception) -> ProtocolError:
    version, request_id = peek(raw)
    if type(version) is int and version != VERSION:
        return ProtocolError(
            f"protocol version {version} is not spoken here",
            request_id,
            "unsupported_version",
            {"versions": [str(VERSION)]},
        )
    reason = str(error) if isinstance(error, msgspec.DecodeError) else "not decodable"
    return ProtocolError(f"header: {reason}", request_id)


def _read(descriptors: Sequence[Descriptor], frames: Sequence[Buffer], limits: Limits | None) -> Tensors:
    tensors: Tensors = {}
    at, count = 2, len(frames)
    for descriptor in descriptors:
        name, shape = descriptor.name, descriptor.shape
        strings = descriptor.dtype in STRING_DTYPES
        jagged = strings or (len(shape) > 1 and shape[1] == -1)
        end = at + 2 if jagged else at + 1
        if end > count:
            raise ProtocolError(f"{name}: its data frames are missing")
        if name in tensors:
            raise ProtocolError(f"{name}: named twice")
        _check_shape(descriptor, strings, jagged, limits)
        if jagged:
            tensors[name] = _read_jagged(descriptor, frames[at], frames[at + 1])
        else:
            tensors[name] = _read_dense(descriptor, frames[at])
        at = end
    if at != count:
        raise ProtocolError(f"{count - at} frames more than the header describes")
    if limits is not None and len(descriptors) > 1:
        counts = {name: t.items for name, t in tensors.items()}
        if len(set(counts.values())) > 1:
            raise ProtocolError(f"inputs differ in their number of items: {counts}")
    return tensors


def _check_shape(descriptor: Descriptor, strings: bool, jagged: bool, limits: Limits | None) -> None:
    name, shape = descriptor.name, descriptor.shape
    fixed, least = (shape[2:], 1) if jagged and not strings else (shape[1:], 0)
    if shape[0] < 0 or (strings and len(shape) != 1) or (fixed and min(fixed) < least):
        raise ProtocolError(f"{name}: shape {list(shape)} is not allowed for {descriptor.dtype}")
    if fixed and prod(d for d in shape if d > 0) > MAX_ELEMENTS:
        raise ProtocolError(f"{name}: shape {list(shape)} exceeds {MAX_ELEMENTS} elements")
    if limits is None:
        return
    if shape[0] == 0:
        raise ProtocolError(f"{name}: has no items")
    if shape[0] > limits.max_items:
        raise ProtocolError(
            f"{name}: {shape[0]} items exceed max_items = {limits.max_items}",
            code="too_large",
            details={"limit": "max_items"},
        )


def _read_dense(descriptor: Descriptor, data: Buffer) -> Tensor:
    expected = prod(descriptor.shape) * ITEMSIZE[descriptor.dtype]
    if len(data) != expected:
        raise ProtocolError(f"{descriptor.name}: {len(data)} bytes where its shape needs {expected}")
    if descriptor.dtype == "bool":
        _check_bool(descriptor.name, data)
    return Tensor(descriptor.dtype, descriptor.shape, data)


def _read_jagged(descriptor: Descriptor, data: Buffer, raw: Buffer) -> Tensor:
    name, items = descriptor.name, descriptor.shape[0]
    if len(raw) != 4 * (items + 1):
        raise ProtocolError(f"{name}: offsets of {len(raw)} bytes where {items} items need {4 * (items + 1)}")
    offsets = memoryview(raw).cast("i").tolist()
    tensor = Tensor(descriptor.dtype, descriptor.shape, data, offsets)
    if offsets[0] != 0 or offsets != sorted(offsets):
        raise ProtocolError(f"{name}: offsets must start at 0 and never fall")
    if offsets[-1] * tensor.stride != len(data):
        raise ProtocolError(f"{name}: {len(data)} bytes where its offsets need {offsets[-1] * tensor.stride}")
    if descriptor.dtype == "utf8":
        _check_utf8(name, tensor)
    elif descriptor.dtype == "bool":
        _check_bool(name, data)
    return tensor


def _check_bool(name: str, data: Buffer) -> None:
    if bytes(data).translate(None, b"\0\1"):
        raise ProtocolError(f"{name}: a bool is a byte of 0 or 1")


def _check_utf8(name: str, tensor: Tensor) -> None:
    try:
        tensor.strings()
    except UnicodeDecodeError:
        raise ProtocolError(f"{name}: not valid UTF-8") from None


def document(name: str, text: str | bytes) -> Tensors:
    """One string as the only output, the form of `hello`, `status`, `tokenizer` and `metrics` answers."""
    dtype = "utf8" if isinstance(text, str) else "bytes"
    return {name: Tensor.from_strings([text], dtype)}
