"""The Open Inference Protocol (KServe v2, Triton's HTTP): health, metadata and inference for every served model."""

from __future__ import annotations

from typing import Any

from werkzeug.exceptions import NotFound

from gpu_server import __version__
from gpu_server.calls import raise_item_errors, to_tensors
from gpu_server.connection import Reply
from gpu_server.errors import RemoteError
from gpu_server.wire.documents import PAIR_KINDS, ModelInfo
from web.backend import Backend
from web.body import decode
from web.call import Call
from web.encoding import Answer, json_answer
from web.errors import BadField
from web.kserve import filled_bytes, metadata, read_inputs, write_output
from web.measures import MODEL_VERSION
from web.routing import Routes
from web.schemas import KServeInferRequest

routes = Routes("kserve")

JSON_LENGTH = "inference-header-content-length"
MAX_DIGITS = 12
MODEL = "/v2/models/<path:model>"
VERSION = f"{MODEL}/versions/<version>"


@routes.get("/v2")
def server(call: Call) -> Answer:
    """The server's name, version and extensions."""
    return json_answer({"name": "gpu-server", "version": __version__, "extensions": ["binary_tensor_data"]})


@routes.get("/v2/health/live", open=True)
def live(call: Call) -> Answer:
    """200 as long as this worker answers."""
    return json_answer({"live": True})


@routes.get("/v2/health/ready", open=True)
def ready(call: Call) -> Answer:
    """200 when every model would be served, else 503."""
    try:
        is_ready = Backend(call).status().state == "ready"
    except RemoteError:
        is_ready = False
    return json_answer({"ready": is_ready}, 200 if is_ready else 503)


@routes.get(MODEL, VERSION)
def model_metadata(call: Call, model: str, version: str = "") -> Answer:
    """A model's inputs; text models take `text` as well, which the daemon tokenises. Outputs are those of its example."""
    info = _model(Backend(call), model, version)
    inputs = [metadata(i.name, i.dtype, i.shape) for i in info.inputs]
    if info.text is not None:
        texts = ("text", "text_pair") if info.kind in PAIR_KINDS else ("text",)
        inputs += [metadata(name, "utf8", ()) for name in texts]
    return json_answer(
        {
            "name": info.name,
            "versions": [info.version or "1"],
            "platform": "gpu-server",
            "inputs": inputs,
            "outputs": [metadata(o.name, o.dtype, o.shape) for o in info.output_tensors],
        }
    )


@routes.get(f"{MODEL}/ready", f"{VERSION}/ready")
def model_ready(call: Call, model: str, version: str = "") -> Answer:
    """200 when the model is served; 404 when there is none of that name."""
    info = _model(Backend(call), model, version)
    return json_answer({"name": info.name, "ready": True})


@routes.post(f"{MODEL}/infer", f"{VERSION}/infer", reads=(KServeInferRequest,))
def model_infer(call: Call, model: str, version: str = "") -> Answer:
    """Run a model on tensors; an item that fails alone fails the request, by its number."""
    asked, binary = _read(call)
    backend = Backend(call, _timeout_s(asked))
    info = _model(backend, model, version)
    tensors = to_tensors(info, read_inputs(asked.inputs, binary, info))
    own = ("binary_data_output", "timeout", "priority", "sequence_id", "sequence_start", "sequence_end")
    parameters = {k: v for k, v in asked.parameters.items() if k not in own}
    reply = backend.send(tensors, info, parameters)
    raise_item_errors(reply)
    return _write(backend, asked, info, reply)


def _model(backend: Backend, name: str, version: str) -> ModelInfo:
    info = backend.model(name)
    if version not in ("", info.version or "1"):
        raise NotFound(f"model {info.name!r} has no version {version!r}; served: {info.version or '1'}")
    return info


def _read(call: Call) -> tuple[KServeInferRequest, bytes]:
    body, given = call.body(), call.header(JSON_LENGTH)
    if not given:
        return decode(body, KServeInferRequest, "inputs"), b""
    if not given.isdecimal() or len(given) > MAX_DIGITS or int(given) > len(body):
        raise BadField(JSON_LENGTH, f"{given:.24} is no length within the body of {len(body)} bytes")
    return decode(body[: int(given)], KServeInferRequest, "inputs"), body[int(given) :]


def _timeout_s(asked: KServeInferRequest) -> float | None:
    """Triton's parameter, in microseconds."""
    given = asked.parameters.get("timeout")
    return given / 1e6 if isinstance(given, int) and given > 0 else None


def _write(backend: Backend, asked: KServeInferRequest, info: ModelInfo, reply: Reply) -> Answer:
    outputs, version = reply.outputs, reply.header.version
    every = asked.parameters.get("binary_data_output") is True
    wanted = {o.name: o.parameters.get("binary_data", every) is True for o in asked.outputs or ()}
    wanted = wanted or dict.fromkeys(outputs, every)
    missing = [name for name in wanted if name not in outputs]
    if missing:
        raise BadField("outputs", f"{missing[0]!r} is none of the outputs: {', '.join(outputs)}")
    unfilled = f"ask for fewer items, or POST /v1/models/{info.name}/infer, which fills none up"
    backend.check_answer(sum(filled_bytes(outputs[name]) for name in wanted), unfilled)
    written = [part for name, binary in wanted.items() for part in write_output(name, outputs[name], binary)]
    head: dict[str, Any] = {
        "model_name": info.name,
        "model_version": version or "1",
        "outputs": [about for about, _ in written],
    }
    answer = json_answer(
        head | ({"id": asked.id} if asked.id is not None else {}), headers={MODEL_VERSION: version}
    )
    if any("parameters" in about for about, _ in written):
        answer.headers[JSON_LENGTH] = str(len(answer.body))
        answer.content_type = "application/octet-stream"
        answer.body = b"".join((answer.body, *(data for _, data in written)))
    return answer
