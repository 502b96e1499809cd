"""Bodies that are no JSON to a model's inputs: a raw tensor, MessagePack, and multipart forms with files."""

from __future__ import annotations

from io import BytesIO
from math import prod
from typing import Any

import msgspec
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from gpu_server.wire import Tensor
from gpu_server.wire.documents import InputInfo, ModelInfo
from gpu_server.wire.tensor import ITEMSIZE, STRING_DTYPES, Buffer
from web.body import bad_field, decode
from web.call import Call
from web.errors import BadField
from web.schemas import PackedInferRequest, PackedTensor, Parameters

MSGPACK = frozenset({"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"})
MAX_PARTS = 4096
PARAMETERS = "parameters"
_NUMBERS = msgspec.msgpack.Decoder(bytes)
_STRINGS = (msgspec.msgpack.Decoder(list[str]), msgspec.msgpack.Decoder(list[bytes]))


def packed_request(call: Call) -> tuple[PackedInferRequest, dict[str, Tensor]]:
    """A MessagePack body and its tensors. Raises BadField naming what does not fit."""
    try:
        body = msgspec.msgpack.decode(call.body(), type=PackedInferRequest)
    except msgspec.ValidationError as error:
        raise bad_field(error, call.body(), PackedInferRequest, msgspec.msgpack.decode) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadField("", f"malformed MessagePack: {error}") from None
    return body, {name: _unpacked(f"inputs.{name}", tensor) for name, tensor in body.inputs.items()}


def raw_request(call: Call, info: ModelInfo) -> dict[str, Tensor]:
    """The body as the bytes of one tensor; x-tensor-name, -dtype and -shape say which, where the model leaves a choice.

    Without a shape it is as many items as the declared dimensions make of it; for an input of bytes or text, one item.
    """
    declared = _named(info, call.header("x-tensor-name"))
    dtype = call.header("x-tensor-dtype") or declared.dtype
    if dtype not in ITEMSIZE:
        raise BadField("x-tensor-dtype", f"{dtype!r} is none of {', '.join(ITEMSIZE)}")
    if dtype in STRING_DTYPES:
        return {declared.name: _strings(declared.name, dtype, [call.body()])}
    given = call.header("x-tensor-shape")
    shape = _shape(given) if given else None
    return {declared.name: dense(declared.name, dtype, shape, call.body(), declared.shape)}


def form_request(call: Call, info: ModelInfo) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and parameters of a multipart form: each part is one item of the input it is named after.

    A file is the item's bytes, for an input of numbers in little-endian order; a field is text, for numbers JSON.
    """
    _, options = parse_options_header(call.environ.get("CONTENT_TYPE", ""))
    body = call.body()
    parser = FormDataParser(
        lambda *_, **__: BytesIO(), max_form_memory_size=len(body), max_form_parts=MAX_PARTS, silent=False
    )
    try:
        _, fields, files = parser.parse(BytesIO(body), "multipart/form-data", len(body), options)
    except ValueError as error:
        raise BadField("", f"malformed form: {error}") from None
    declared = {i.name: i for i in info.inputs}
    parameters: dict[str, Any] = {}
    if PARAMETERS in fields and PARAMETERS not in declared:
        parameters = decode(fields.poplist(PARAMETERS)[0].encode(), Parameters)
    inputs: dict[str, Any] = {}
    parts: list[tuple[str, str | bytes]] = [
        (name, file.stream.read()) for name, file in files.items(multi=True)
    ]
    parts += fields.items(multi=True)
    for name, part in parts:
        items = inputs.setdefault(name, [])
        items.append(_part(f"{name}[{len(items)}]", part, declared.get(name)))
    return inputs, parameters


def dense(
    field: str, dtype: str, shape: tuple[int, ...] | None, data: Buffer, item: tuple[int, ...]
) -> Tensor:
    """A tensor of raw little-endian bytes, of `shape` or of items of the dimensions `item`. Raises BadField."""
    if shape is None:
        size = prod(item) * ITEMSIZE[dtype]
        if size <= 0 or len(data) % size:
            raise BadField(
                field,
                f"{len(data)} bytes are no whole number of {dtype} items {list(item)}; x-tensor-shape names another shape",
            )
        shape = (len(data) // size, *item)
    expected = prod(shape) * ITEMSIZE[dtype]
    if expected != len(data):
        raise BadField(
            field, f"shape {list(shape)} of {dtype} needs {expected} bytes, and {len(data)} are there"
        )
    return Tensor(dtype, shape, data)


def packed(tensor: Tensor) -> dict[str, Any]:
    """A tensor as MessagePack carries it; ragged ones have the offsets of their items too."""
    about: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.dtype in STRING_DTYPES:
        return about | {"data": tensor.strings() if tensor.dtype == "utf8" else tensor.raw_strings()}
    if tensor.offsets is not None:
        about["offsets"] = tensor.offsets
    return about | {"data": bytes(tensor.data)}


def _named(info: ModelInfo, name: str) -> InputInfo:
    declared = {i.name: i for i in info.inputs}
    if not name and len(declared) == 1:
        return info.inputs[0]
    if not declared and name:
        return InputInfo(name, "f32")
    if name not in declared:
        raise BadField(
            "x-tensor-name",
            f"model {info.name!r} takes the inputs: {', '.join(declared) or 'any'}; got: {name or 'none'}",
        )
    return declared[name]


def _shape(given: str) -> tuple[int, ...]:
    parts = [part.strip() for part in given.strip("()[] ").split(",") if part.strip()]
    if not parts or len(parts) > 8 or not all(p.isdecimal() and len(p) < 12 for p in parts):
        raise BadField("x-tensor-shape", f"{given!r} is no list of up to 8 sizes such as 1,3,224,224")
    return tuple(map(int, parts))


def _unpacked(field: str, tensor: PackedTensor) -> Tensor:
    if tensor.dtype in STRING_DTYPES:
        items = _packed_strings(field, tensor.data)
        if tensor.shape != [len(items)]:
            raise BadField(
                field, f"{tensor.dtype} data is a list with one entry per item, as many as its shape says"
            )
        return _strings(field, tensor.dtype, items)
    try:
        data = _NUMBERS.decode(tensor.data)
    except msgspec.MsgspecError:
        raise BadField(f"{field}.data", f"expected the bytes of {tensor.dtype} numbers") from None
    return dense(field, tensor.dtype, tuple(tensor.shape), data, ())


def _packed_strings(field: str, data: msgspec.Raw) -> list[Any]:
    for decoder in _STRINGS:
        try:
            return decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    raise BadField(f"{field}.data", "expected a list of UTF-8 strings, or one of bytes")


def _strings(field: str, dtype: str, items: list[Any]) -> Tensor:
    if not all(isinstance(item, str | bytes) for item in items):
        raise BadField(field, "expected strings")
    try:
        for item in items if dtype == "utf8" else ():
            if isinstance(item, bytes):
                item.decode()
        return Tensor.from_strings(items, dtype)
    except UnicodeError:
        raise BadField(field, "not valid UTF-8") from None


def _part(field: str, item: str | bytes, declared: InputInfo | None) -> Any:
    dtype = declared.dtype if declared else "bytes"
    if dtype in STRING_DTYPES:
        if isinstance(item, str):
            return item if dtype == "utf8" else item.encode()
        return item if dtype == "bytes" else _strings(field, dtype, [item]).strings()[0]
    assert declared is not None
    if isinstance(item, str):
        return decode(item.encode(), object, field)
    if -1 in declared.shape:
        return dense(field, dtype, None, item, declared.shape[1:]).to_numpy()
    return dense(field, dtype, declared.shape, item, ()).to_numpy()
