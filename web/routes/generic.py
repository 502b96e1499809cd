"""The route for any model: named inputs to named outputs."""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any

import msgspec
from flask import Blueprint, Response

from gpu_server.calls import from_tensor
from gpu_server.wire import Timing
from gpu_server.wire.documents import ModelInfo
from web.backend import backend
from web.body import read
from web.context import traceparent
from web.encoding import json_response, json_value
from web.errors import BadField
from web.schemas import InferRequest

blueprint = Blueprint("generic", __name__)

MAX_HEADER_PART_BYTES = 1024
"""What a caller may add to a request's header, so that with everything else in it it stays under the protocol's limit."""


@blueprint.post("/v1/models/<path:name>/infer")
def infer(name: str) -> Response:
    """Run a model; items that fail alone are listed in `item_errors` and their rows are zero or empty.

    Inputs and outputs of type `bytes` are base64 strings. Numbers that are not finite become null.
    """
    body = read(InferRequest)
    served = backend(body.timeout_ms / 1e3 if body.timeout_ms else None)
    info = served.model(name)
    if len(msgspec.msgpack.encode((list(body.inputs), body.parameters))) > MAX_HEADER_PART_BYTES:
        raise BadField("parameters", f"with the input names they exceed {MAX_HEADER_PART_BYTES} bytes")
    reply = served.infer(info, _with_bytes(info, body.inputs), body.parameters, body.priority, traceparent())
    header = reply.header
    return json_response(
        {
            "model": header.model or info.name,
            "version": header.version,
            "outputs": {key: json_value(from_tensor(tensor)) for key, tensor in reply.outputs.items()},
            "item_errors": [msgspec.structs.asdict(failed) for failed in header.item_errors],
            "timing": msgspec.structs.asdict(header.timing or Timing()),
        }
    )


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
