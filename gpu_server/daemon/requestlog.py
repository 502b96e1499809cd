"""Log lines of single requests and batches with their trace ids: at level debug, but for what the engine is to blame for."""

from __future__ import annotations

import logging
from typing import Any

from gpu_server.daemon.request import Batch, Request
from gpu_server.errors import EngineCrashed, InternalError, ModelFailed, OutOfMemory, RemoteError

SERIOUS = (EngineCrashed, InternalError, ModelFailed, OutOfMemory)
"""What an operator wants to know of without asking; the others are the caller's matter, or come in floods."""

log = logging.getLogger(__name__)


def trace_id(traceparent: str) -> str:
    """The trace id of a W3C trace context, "" for none."""
    return traceparent[3:35]


def answered(request: Request, now: float) -> None:
    """A request has its outputs."""
    if log.isEnabledFor(logging.DEBUG):
        timing = request.timing(now)
        times = {
            "queue_ms": timing.queue_us / 1e3,
            "compute_ms": timing.compute_us / 1e3,
            "total_ms": timing.total_us / 1e3,
        }
        log.debug("request answered", extra=_facts(request) | times)


def failed(request: Request, error: RemoteError) -> None:
    """A request has an error for its answer."""
    level = logging.WARNING if isinstance(error, SERIOUS) else logging.DEBUG
    if log.isEnabledFor(level):
        facts = _facts(request) | {"code": error.code, "reason": error.message}
        log.log(level, "request failed", extra=facts)


def sent(batch: Batch) -> None:
    """The engine has a batch; its own lines name the batch and the first of the traces."""
    if log.isEnabledFor(logging.DEBUG):
        traces = dict.fromkeys(trace_id(request.traceparent) for request, _, _ in batch.slices)
        facts = {"batch": batch.id, "model": batch.model, "items": batch.items, "cost": batch.cost}
        log.debug("batch sent", extra=facts | {"traces": ",".join(filter(None, traces))})


def _facts(request: Request) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": request.model, "items": request.items}
    if request.traceparent:
        facts["trace"] = trace_id(request.traceparent)
    return facts
