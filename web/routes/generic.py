"""The route for any model: named inputs to named outputs, as JSON, MessagePack, a raw tensor, a form or an image."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import msgspec
from werkzeug.exceptions import UnsupportedMediaType

from gpu_server.calls import Params, Priority, from_tensor, to_tensors
from gpu_server.connection import Reply
from gpu_server.wire import Timing
from gpu_server.wire.documents import ModelInfo
from web.backend import Backend
from web.body import is_json, read
from web.call import Call
from web.encoding import Answer, json_answer, json_value
from web.errors import BadField
from web.measures import MODEL_VERSION
from web.routing import Routes
from web.schemas import InferRequest, PackedInferRequest
from web.tensors import MSGPACK, form_request, packed, packed_request, raw_request

routes = Routes("openai")

MAX_HEADER_PART_BYTES = 1024
"""What a caller may add to a request's header, so that with everything else in it it stays under the protocol's limit."""


@routes.post("/v1/models/<path:model>/infer", reads=(InferRequest, PackedInferRequest))
def infer(call: Call, model: str) -> Answer:
    """Run a model; items that fail alone are listed in `item_errors` and their rows are zero or empty.

    The content type says what the body is: JSON or MessagePack with named inputs, multipart/form-data with a part per item,
    application/octet-stream with one raw tensor, image/* with one item of an input of bytes. In JSON inputs and outputs of
    type `bytes` are base64 strings and numbers that are not finite become null.
    """
    kind = call.mimetype
    if kind in MSGPACK:
        body, tensors = packed_request(call)
        backend = _backend(call, body.timeout_ms)
        return _run(call, backend, backend.model(model), tensors, body.parameters, body.priority)
    if is_json(kind):
        asked = read(call, InferRequest, "inputs")
        backend = _backend(call, asked.timeout_ms)
        info = backend.model(model)
        return _run(call, backend, info, _with_bytes(info, asked.inputs), asked.parameters, asked.priority)
    backend = _backend(call, None)
    if kind == "multipart/form-data":
        info = backend.model(model)
        inputs, parameters = form_request(call, info)
        return _run(call, backend, info, inputs, parameters, 1)
    if kind == "application/octet-stream" or kind.startswith("image/"):
        info = backend.model(model)
        return _run(call, backend, info, raw_request(call, info), {}, 1)
    raise UnsupportedMediaType(
        "the body must be application/json, application/msgpack, multipart/form-data, application/octet-stream or image/*"
    )


def _backend(call: Call, timeout_ms: int | None) -> Backend:
    return Backend(call, timeout_ms / 1e3 if timeout_ms else None)


def _run(
    call: Call,
    backend: Backend,
    info: ModelInfo,
    inputs: Mapping[str, Any],
    parameters: Params,
    priority: Priority,
) -> Answer:
    if len(msgspec.msgpack.encode((list(inputs), parameters))) > MAX_HEADER_PART_BYTES:
        raise BadField("parameters", f"with the input names they exceed {MAX_HEADER_PART_BYTES} bytes")
    reply = backend.send(to_tensors(info, inputs), info, parameters, priority=priority)
    headers = {MODEL_VERSION: reply.header.version}
    wanted = call.header("accept").partition(";")[0].strip().lower()
    if wanted in MSGPACK or (call.mimetype in MSGPACK and wanted in ("", "*/*")):
        tensors = {name: packed(tensor) for name, tensor in reply.outputs.items()}
        body = msgspec.msgpack.encode(_answer(reply, info, tensors))
        return Answer(body, headers=headers, content_type="application/msgpack")
    outputs = {name: json_value(from_tensor(tensor)) for name, tensor in reply.outputs.items()}
    return json_answer(_answer(reply, info, outputs), headers=headers)


def _answer(reply: Reply, info: ModelInfo, outputs: dict[str, Any]) -> dict[str, Any]:
    header = reply.header
    return {
        "model": header.model or info.name,
        "version": header.version,
        "outputs": outputs,
        "item_errors": [msgspec.structs.asdict(failed) for failed in header.item_errors],
        "timing": msgspec.structs.asdict(header.timing or Timing()),
    }


def _with_bytes(info: ModelInfo, inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    binary = [i.name for i in info.inputs if i.dtype == "bytes" and i.name in inputs]
    return inputs | {
        key: [_bytes(v, f"inputs.{key}[{i}]") for i, v in enumerate(inputs[key])] for key in binary
    }


def _bytes(value: Any, field: str) -> bytes:
    try:
        return b64decode(value, validate=True)
    except (TypeError, binascii.Error, ValueError):
        raise BadField(field, "expected a base64 string") from None
