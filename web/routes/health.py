"""What orchestrators ask: is the process alive, is the service ready, what are its metrics. None of it queues."""

from __future__ import annotations

from flask import Blueprint, Response

from gpu_server.errors import RemoteError
from web.backend import backend
from web.encoding import json_response

blueprint = Blueprint("health", __name__)

_UP = "# HELP gpu_server_up Whether the daemon answers this worker.\n# TYPE gpu_server_up gauge\ngpu_server_up {}\n"


@blueprint.get("/livez")
def livez() -> Response:
    """200 as long as this worker answers at all."""
    return json_response({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """200 when the daemon is ready, else 503 with its state and how far the load is."""
    try:
        status = backend().status()
    except RemoteError as error:
        return _not_ready({"state": "unreachable", "phase": "", "progress": 0.0, "error": error.message})
    body = {"state": status.state, "phase": status.phase, "progress": status.progress}
    return json_response(body) if status.state == "ready" else _not_ready(body)


@blueprint.get("/metrics")
def metrics() -> Response:
    """The daemon's metrics and `gpu_server_up`; 200 with that alone when it does not answer."""
    try:
        text = backend().metrics() + _UP.format(1)
    except RemoteError:
        text = _UP.format(0)
    return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")


def _not_ready(body: dict[str, object]) -> Response:
    return json_response(body, 503, {"Retry-After": "1"})
