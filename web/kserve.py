"""Tensors of the Open Inference Protocol, in JSON and in its binary extension, from and to those of this project's wire."""

from __future__ import annotations

import struct
from base64 import b64encode
from math import prod
from typing import Any

import numpy as np

from gpu_server.wire import Tensor
from gpu_server.wire.convert import as_tensor
from gpu_server.wire.documents import InputInfo, ModelInfo
from gpu_server.wire.tensor import STRING_DTYPES, Buffer
from web.errors import BadField
from web.schemas import KServeInput
from web.tensors import dense

DATATYPE = {
    "bool": "BOOL", "i8": "INT8", "i16": "INT16", "i32": "INT32", "i64": "INT64", "u8": "UINT8", "u16": "UINT16",
    "u32": "UINT32", "u64": "UINT64", "f16": "FP16", "bf16": "BF16", "f32": "FP32", "f64": "FP64", "utf8": "BYTES",
    "bytes": "BYTES",
}  # fmt: skip
_DTYPE = {datatype: dtype for dtype, datatype in DATATYPE.items() if dtype != "utf8"}


def read_inputs(asked: list[KServeInput], binary: bytes, info: ModelInfo) -> dict[str, Tensor]:
    """The inputs of a request, with `binary` the bytes after its JSON. Raises BadField naming the input."""
    declared = {i.name: i for i in info.inputs}
    inputs: dict[str, Tensor] = {}
    at = 0
    for i, given in enumerate(asked):
        field = f"inputs[{i}] ({given.name})"
        if given.name in inputs:
            raise BadField(field, "is there twice")
        if given.data is not None:
            inputs[given.name] = _from_json(field, given, declared.get(given.name))
            continue
        size = given.parameters.get("binary_data_size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary) - at:
            raise BadField(
                field, f"needs data, or a binary_data_size of at most the {len(binary) - at} bytes left"
            )
        inputs[given.name] = _from_bytes(field, given, binary[at : at + size], declared.get(given.name))
        at += size
    if at != len(binary):
        raise BadField("inputs", f"{len(binary) - at} bytes after the last tensor belong to none")
    return inputs


def filled_bytes(tensor: Tensor) -> int:
    """Bytes of an output once its items are filled up to one length."""
    if tensor.offsets is None or tensor.dtype in STRING_DTYPES:
        return len(tensor.data)
    return tensor.items * max(tensor.lengths(), default=0) * tensor.stride


def write_output(name: str, tensor: Tensor, as_bytes: bool) -> list[tuple[dict[str, Any], Buffer]]:
    """An output as its JSON entry and its bytes, which are empty in the JSON form.

    Items of unequal length are filled up with zeros, and a second output, `<name>_lengths`, says how long each is.
    """
    if tensor.dtype in STRING_DTYPES:
        return [_string_output(name, tensor, as_bytes)]
    if tensor.offsets is None:
        return [_output(name, tensor, as_bytes)]
    rows = tensor.rows()
    lengths = [len(row) for row in rows]
    dims = tensor.shape[2:]
    filled = np.zeros((len(rows), max(lengths, default=0), *dims), rows[0].dtype if rows else np.float32)
    for target, row in zip(filled, rows, strict=True):
        target[: len(row)] = row
    written = [_output(name, Tensor.from_numpy(filled), as_bytes)]
    if len(set(lengths)) > 1:
        sizes = Tensor.from_numpy(np.array(lengths, np.int32))
        written.append(_output(f"{name}_lengths", sizes, as_bytes))
    return written


def _from_json(field: str, given: KServeInput, declared: InputInfo | None) -> Tensor:
    if given.datatype == "BYTES":
        items = _flat(given.data, len(given.shape))
        if not all(isinstance(item, str) for item in items):
            raise BadField(field, "BYTES data must be strings")
        return _strings(field, given, [item.encode("utf-8", "surrogatepass") for item in items], declared)
    dtype = _DTYPE[given.datatype]
    if dtype == "bf16":
        raise BadField(field, "BF16 has no JSON form; send it as binary data")
    try:
        values = _flat(given.data, len(given.shape))
        flat = as_tensor(values, dtype, False) if values else Tensor(dtype, (0,), b"")
    except (TypeError, ValueError, OverflowError) as error:
        raise BadField(field, str(error)) from None
    return dense(field, dtype, tuple(given.shape), flat.data, ())


def _flat(data: Any, dimensions: int) -> list[Any]:
    """Data may be nested as its shape is, or flat; what is nested deeper stays so."""
    items: list[Any] = data
    for _ in range(dimensions - 1):
        if not items or not isinstance(items[0], list):
            break
        items = [v for part in items for v in (part if isinstance(part, list) else [part])]
    return items


def _from_bytes(field: str, given: KServeInput, data: bytes, declared: InputInfo | None) -> Tensor:
    if given.datatype != "BYTES":
        return dense(field, _DTYPE[given.datatype], tuple(given.shape), data, ())
    items = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4 + length
        if at > len(data):
            raise BadField(field, "its BYTES elements do not fill its binary_data_size")
        items.append(data[at - length : at])
    return _strings(field, given, items, declared)


def _strings(field: str, given: KServeInput, items: list[bytes], declared: InputInfo | None) -> Tensor:
    if prod(given.shape) != len(items) or prod(given.shape[1:]) != 1:
        raise BadField(
            field, f"shape {given.shape} does not say one string per item for {len(items)} strings"
        )
    dtype = declared.dtype if declared and declared.dtype in STRING_DTYPES else "utf8"
    if dtype == "utf8":
        for item in items:
            try:
                item.decode()
            except UnicodeDecodeError:
                raise BadField(field, "not valid UTF-8") from None
    return Tensor.from_strings(items, dtype)


def _output(name: str, tensor: Tensor, as_bytes: bool) -> tuple[dict[str, Any], Buffer]:
    about: dict[str, Any] = {"name": name, "shape": list(tensor.shape), "datatype": DATATYPE[tensor.dtype]}
    if as_bytes:
        return about | {"parameters": {"binary_data_size": len(tensor.data)}}, tensor.data
    if tensor.dtype == "bf16":
        about["datatype"] = "FP32"
    values = tensor.to_numpy()
    return about | {"data": np.ascontiguousarray(values).reshape(-1)}, b""


def _string_output(name: str, tensor: Tensor, as_bytes: bool) -> tuple[dict[str, Any], bytes]:
    raw = tensor.raw_strings()
    about: dict[str, Any] = {"name": name, "shape": [len(raw)], "datatype": "BYTES"}
    if as_bytes:
        data = b"".join(struct.pack("<I", len(item)) + item for item in raw)
        return about | {"parameters": {"binary_data_size": len(data)}}, data
    coded = [b64encode(item).decode() for item in raw] if tensor.dtype == "bytes" else tensor.strings()
    return about | {"data": coded}, b""


def metadata(name: str, dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """A declared input or output as the protocol describes it: the first dimension counts items."""
    return {"name": name, "datatype": DATATYPE[dtype], "shape": [-1, *shape]}
