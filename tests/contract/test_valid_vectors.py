"""Every message of proto/vectors/valid.json decodes to what the vector states, and encodes back to an equal one."""

import json
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from gpu_server.wire import (
    Limits,
    ReplyHeader,
    RequestHeader,
    Tensor,
    Tensors,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "proto" / "vectors" / "valid.json").read_text("utf-8")
)
# A header that holds one of these says the same without it.
DEFAULTS = {"more": False, "priority": 1, "params": {}}

each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])


@each_vector
def test_header_is_as_stated(vector: dict[str, Any]) -> None:
    header, _ = decode(vector)
    stated = {k: exact(v) for k, v in vector["header"].items()}
    assert {k: exact(as_json(getattr(header, k))) for k in stated} == stated
    assert exact(as_json(header)) == exact(without_defaults(vector["header"]))


@each_vector
def test_tensors_are_as_stated(vector: dict[str, Any]) -> None:
    _, tensors = decode(vector)
    held = {name: {"dtype": t.dtype, "shape": t.shape, "values": values(t)} for name, t in tensors.items()}
    assert list(held) == list(vector["tensors"])
    assert exact(held) == exact(vector["tensors"])


@each_vector
def test_encoding_again_gives_an_equal_message(vector: dict[str, Any]) -> None:
    header, tensors = decode(vector)
    again: list[Any] = (
        encode_request(header, tensors)
        if isinstance(header, RequestHeader)
        else encode_reply(header, tensors)
    )
    plain = as_json(msgpack.unpackb(again[1]))
    assert exact(plain) == exact(without_defaults(vector["header"]))
    data = [bytes(frame).hex() for frame in (again[0], *again[2:])]
    assert data == [vector["frames"][0], *vector["frames"][2:]]


@each_vector
def test_plain_msgpack_reads_the_stated_header(vector: dict[str, Any]) -> None:
    assert exact(as_json(msgpack.unpackb(bytes.fromhex(vector["frames"][1])))) == exact(vector["header"])


def decode(vector: dict[str, Any]) -> tuple[RequestHeader | ReplyHeader, Tensors]:
    frames = [bytes.fromhex(frame) for frame in vector["frames"]]
    return decode_request(frames, Limits()) if vector["kind"] == "request" else decode_reply(frames)


def without_defaults(header: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in header.items() if k not in DEFAULTS or v != DEFAULTS[k]}


def as_json(value: Any) -> Any:
    """Structs, maps and bytes as the vectors write them; struct fields at their default are left out."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        return {f.name: as_json(getattr(value, f.name)) for f in fields if not left_out(value, f)}
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    return value.hex() if isinstance(value, bytes) else value


def left_out(struct: msgspec.Struct, field: msgspec.structs.FieldInfo) -> bool:
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return bool(default is not msgspec.NODEFAULT and getattr(struct, field.name) == default)


def values(tensor: Tensor) -> Any:
    if tensor.dtype == "utf8":
        return tensor.strings()
    if tensor.dtype == "bytes":
        return [raw.hex() for raw in tensor.raw_strings()]
    if tensor.offsets is None:
        return tensor.to_numpy().tolist()
    return [row.tolist() for row in tensor.rows()]


def exact(value: Any) -> str:
    """A form in which 1, 1.0 and true differ, and the order of keys does not matter."""
    return json.dumps(value, sort_keys=True)
