"""What becomes of waiting requests when another engine takes over: with other models, versions of them, or weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.request import Batch, Request
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.errors import ModelNotFound, RemoteError, StaleTokenizer

Fail = Callable[[Request, RemoteError], None]


def carry_over(
    requests: Iterable[Request], before: EngineLink, now: EngineLink, scheduler: Scheduler, fail: Fail
) -> None:
    """Fit requests with items that still wait, accepted for models of `before`, to those of their names in `now`.

    An answer comes from one generation of engines and one version of the model: where either changes, rows that have run, or
    still run in `before`, do not count. `fail` gets each request that cannot stay.
    """
    for request in requests:
        if not request.waiting:
            continue
        known, info = before.models[request.model], now.models.get(request.model)
        if info is None:
            fail(request, ModelNotFound(f"model {known.name!r} is no longer served"))
        elif (info.text, info.inputs, info.params) != (known.text, known.inputs, known.params):
            changed = f"model {known.name!r} was changed while this request waited; send it again"
            fail(request, StaleTokenizer(changed))
        elif request.waiting_items() < request.items and (
            (before.generation, known.version) != (now.generation, info.version)
        ):
            _disown(request, before.batches.values())
            scheduler.restart(request)


def _disown(request: Request, running: Iterable[Batch]) -> None:
    """Let the answers of running batches reach a closed double instead of the request."""
    double = copy.copy(request)
    double.closed = True
    for batch in running:
        batch.slices = [(double if r is request else r, start, stop) for r, start, stop in batch.slices]
