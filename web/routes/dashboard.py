"""A page with live plots, whole in one file, and the numbers it asks for each second. Served where /metrics is."""

from __future__ import annotations

import re
from importlib.resources import files
from urllib.parse import parse_qs

import msgspec

from gpu_server.wire.monitoring import ModelMemory
from web.backend import Backend
from web.call import Call
from web.encoding import Answer, json_answer
from web.errors import BadField
from web.pages import page_answer
from web.routes.health import check_port
from web.routing import Routes

routes = Routes("tei")

PAGE = files("web").joinpath("dashboard.html").read_bytes()


@routes.get("/dashboard", open=True)
def dashboard(call: Call) -> Answer:
    """The page. It holds no numbers, so it needs no key: it asks for one where the numbers do."""
    check_port(call)
    return page_answer(PAGE)


@routes.get("/dashboard/data")
def data(call: Call) -> Answer:
    """The points after number `since`, and what the page says of the daemon beside its plots."""
    check_port(call)
    backend = Backend(call)
    history, status = backend.history(_since(call)), backend.status()
    models: dict[str, ModelMemory] = {m.name: m for e in status.engines for m in e.memory.models}
    return json_answer(
        {
            "state": status.state,
            "phase": status.phase,
            "progress": status.progress,
            "uptime_s": status.uptime_s,
            "version": status.version,
            "models": [model.name for model in status.models],
            "devices": list(dict.fromkeys(engine.device for engine in status.engines if engine.device)),
            "memory": msgspec.to_builtins(list(models.values())),
            "gpus": msgspec.to_builtins(status.gpus),
            "points": msgspec.to_builtins(history.points),
        },
        headers={"Cache-Control": "no-store"},
    )


def _since(call: Call) -> int:
    given = parse_qs(call.environ.get("QUERY_STRING", "")).get("since", ["0"])[-1]
    if not re.fullmatch(r"[0-9]{1,15}", given):
        raise BadField("since", "must be the number of a point")
    return int(given)
