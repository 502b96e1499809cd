"""What orchestrators ask: is the process alive, is the service ready, what are its metrics. None of it queues."""

from __future__ import annotations

from werkzeug.exceptions import NotFound

from gpu_server.errors import RemoteError
from web.backend import ASK_TIMEOUT_S, Backend
from web.call import Call
from web.encoding import Answer, json_answer
from web.routing import Routes
from web.settings import variable_of

routes = Routes("tei")

_UP = "# HELP gpu_server_up Whether the daemon answers this worker.\n# TYPE gpu_server_up gauge\ngpu_server_up {}\n"


@routes.get("/livez", open=True)
def livez(call: Call) -> Answer:
    """200 as long as this worker answers at all."""
    return json_answer({"status": "ok"})


@routes.get("/readyz", open=True)
def readyz(call: Call) -> Answer:
    """200 when the daemon is ready, else 503 with its state and how far the load is."""
    try:
        status = Backend(call).status()
    except RemoteError as error:
        return _not_ready({"state": "unreachable", "phase": "", "progress": 0.0, "error": error.message})
    body = {"state": status.state, "phase": status.phase, "progress": status.progress}
    return json_answer(body) if status.state == "ready" else _not_ready(body)


@routes.get("/metrics")
def metrics(call: Call) -> Answer:
    """The daemon's metrics and `gpu_server_up`; 200 with that alone when it does not answer."""
    check_port(call)
    backend = Backend(call)
    call.shared.counts.flush(backend.deadline.left(ASK_TIMEOUT_S / 2))
    try:
        text = backend.metrics() + _UP.format(1)
    except RemoteError:
        text = _UP.format(0)
    return Answer(text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


def check_port(call: Call) -> None:
    """Raise NotFound where this listener is not the one that shows metrics."""
    bound = call.settings.metrics_bind
    if bound and _port(call) != bound.rpartition(":")[2]:
        path = call.environ["PATH_INFO"]
        raise NotFound(f"{path} is not served here; {variable_of('metrics_bind')} says where")


def _port(call: Call) -> str:
    """The port of the listener: by its socket, since what Gunicorn says of a Unix socket is the caller's own host header."""
    socket = call.environ.get("gunicorn.socket")
    address = socket.getsockname() if socket else ()
    return str(address[1]) if isinstance(address, tuple) and address else ""


def _not_ready(body: dict[str, object]) -> Answer:
    return json_answer(body, 503, {"Retry-After": "1"})
