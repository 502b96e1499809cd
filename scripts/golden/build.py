"""Frames, descriptors and headers from plain values, by msgpack and struct alone."""

import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import msgpack

Vector = dict[str, Any]

ID = bytes.fromhex("00112233445566778899aabbccddeeff")
CODES = {
    "bool": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q",
    "f16": "e", "f32": "f", "f64": "d",
}  # fmt: skip


class Tensor(NamedTuple):
    """One tensor: its descriptor, its values as JSON has them, its frames."""

    name: str
    dtype: str
    shape: list[int]
    values: Any
    frames: list[bytes]

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": self.shape}


def numbers(dtype: str, values: Sequence[Any]) -> bytes:
    """Flat values as little-endian bytes; bf16 is the upper half of a float32 that it must equal."""
    if dtype == "bf16":
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return struct.pack(f"<{len(values)}{CODES[dtype]}", *values)


def offsets(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def dense(name: str, dtype: str, values: list[Any]) -> Tensor:
    return Tensor(name, dtype, _shape(values), values, [numbers(dtype, _flat(values))])


def ragged(name: str, dtype: str, rows: list[list[Any]], trailing: Sequence[int] = ()) -> Tensor:
    ends = offsets(0, *accumulate(map(len, rows)))
    return Tensor(name, dtype, [len(rows), -1, *trailing], rows, [numbers(dtype, _flat(rows)), ends])


def utf8(name: str, values: list[str]) -> Tensor:
    return Tensor(name, "utf8", [len(values)], values, _string_frames([v.encode() for v in values]))


def blobs(name: str, values: list[bytes]) -> Tensor:
    return Tensor(name, "bytes", [len(values)], [v.hex() for v in values], _string_frames(values))


def request(op: str = "infer", *tensors: Tensor, **keys: Any) -> dict[str, Any]:
    """A request header; a key given as None is left out."""
    return _header({"v": 1, "id": ID, "op": op}, "inputs", tensors, keys)


def reply(*tensors: Tensor, **keys: Any) -> dict[str, Any]:
    """A reply header; a key given as None is left out."""
    return _header({"v": 1, "id": ID}, "outputs", tensors, keys)


def message(header: dict[str, Any] | bytes, *frames: bytes) -> list[bytes]:
    return [b"", header if isinstance(header, bytes) else pack(header), *frames]


def refusal(
    name: str, clause: str, meaning: str, frames: list[bytes], identifier: bytes = ID, **more: Any
) -> Vector:
    """A vector that must be refused, under `identifier` and with `invalid_request` unless `more` says otherwise."""
    return {
        "name": name,
        "clause": clause,
        "meaning": meaning,
        "kind": "request",
        "code": "invalid_request",
        "id": identifier.hex(),
        "frames": [frame.hex() for frame in frames],
        **more,
    }


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def bin_as_hex(value: Any) -> Any:
    """A decoded header as JSON has it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: bin_as_hex(v) for k, v in value.items()}
    return [bin_as_hex(v) for v in value] if isinstance(value, list) else value


def _header(
    start: dict[str, Any], key: str, tensors: Sequence[Tensor], keys: dict[str, Any]
) -> dict[str, Any]:
    described = {key: [t.descriptor for t in tensors]} if tensors else {}
    return {k: v for k, v in {**start, **keys, **described}.items() if v is not None}


def _string_frames(raw: list[bytes]) -> list[bytes]:
    return [b"".join(raw), offsets(0, *accumulate(map(len, raw)))]


def _shape(values: Any) -> list[int]:
    return [len(values), *_shape(values[0])] if isinstance(values, list) and values else []


def _flat(values: Any) -> list[Any]:
    return [leaf for v in values for leaf in _flat(v)] if isinstance(values, list) else [values]
