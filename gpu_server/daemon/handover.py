"""What becomes of waiting requests when other models, or other versions of them, take over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping

from gpu_server.daemon.request import Batch, Request
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.errors import ModelNotFound, RemoteError, StaleTokenizer
from gpu_server.wire.documents import ModelInfo

Models = Mapping[str, ModelInfo]
Fail = Callable[[Request, RemoteError], None]


def carry_over(
    requests: Iterable[Request],
    before: Models,
    now: Models,
    scheduler: Scheduler,
    fail: Fail,
    replaced: bool,
    running: Iterable[Batch] = (),
) -> None:
    """Fit requests with items that still wait, accepted for models of `before`, to those of their names in `now`.

    replaced: these were loaded anew although the old ones were there, which is done for files that no version tells of, such
    as the weights of a class. running: batches of the old engine that are still to be answered. `fail` gets each request
    that cannot stay.
    """
    for request in requests:
        if not request.waiting:
            continue
        known, info = before[request.model], now.get(request.model)
        if info is None:
            fail(request, ModelNotFound(f"model {known.name!r} is no longer served"))
        elif (info.text, info.inputs, info.params) != (known.text, known.inputs, known.params):
            changed = f"model {known.name!r} was changed while this request waited; send it again"
            fail(request, StaleTokenizer(changed))
        elif (replaced or info.version != known.version) and request.waiting_items() < request.items:
            # An answer comes from one version of a model: rows of the old one do not count.
            _disown(request, running)
            scheduler.restart(request)


def _disown(request: Request, running: Iterable[Batch]) -> None:
    """Let the answers of running batches reach a closed double instead of the request."""
    double = copy.copy(request)
    double.closed = True
    for batch in running:
        batch.slices = [(double if r is request else r, start, stop) for r, start, stop in batch.slices]
