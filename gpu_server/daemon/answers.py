"""What becomes of a batch's answer: shared out to its requests, each of which gets one reply; and every error reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from gpu_server.daemon import requestlog
from gpu_server.daemon.ledger import Ledger
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.quarantine import Quarantine
from gpu_server.daemon.request import Batch, Request
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.errors import (
    Cancelled,
    EngineCrashed,
    ModelFailed,
    ProtocolError,
    RemoteError,
    TooLarge,
    from_wire,
)
from gpu_server.wire import (
    VERSION,
    Buffer,
    ItemError,
    ReplyHeader,
    Tensors,
    encode_reply,
    error_reply,
)

Send = Callable[[bytes, list[Buffer]], None]


class Answers:
    """Ends requests: takes them out of scheduler and ledger, counts them and sends their reply.

    generation: of the engine that gets batches now, or did last. max_answer_bytes: what may gather for an answer that
    several batches give.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        ledger: Ledger,
        metrics: Metrics,
        quarantine: Quarantine,
        clock: Callable[[], float],
        send: Send,
        max_answer_bytes: int,
    ) -> None:
        self.generation = 0
        self._max_answer_bytes = max_answer_bytes
        self._scheduler = scheduler
        self._ledger = ledger
        self._metrics = metrics
        self._quarantine = quarantine
        self._clock = clock
        self._send = send

    def share(self, batch: Batch, header: ReplyHeader, outputs: Tensors, compute_us: int) -> None:
        """Give the requests of a batch that ran for `compute_us` what the engine answered."""
        error = _error_of(batch, header, outputs)
        if error is not None:
            self._fail_batch(batch, error)
            return
        columns = {name: tensor.split(batch.sizes()) for name, tensor in outputs.items()}
        at = 0
        for number, (request, start, stop) in enumerate(batch.slices):
            items = stop - start
            if request.closed:
                self._metrics.dropped["late_result"] += 1
            else:
                request.ran_in(batch, compute_us)
                errors = header.item_errors and _within(header.item_errors, at, at + items, start - at)
                if not errors or self._keep_errors(request, batch, start, stop, errors):
                    rows = {name: column[number] for name, column in columns.items()}
                    if request.take(start, rows, items):
                        self._answer(request, batch.version)
                    elif request.taken_bytes() > self._max_answer_bytes:
                        self.fail(request, _answer_too_large(self._max_answer_bytes))
            at += items

    def fail(self, request: Request, error: RemoteError) -> None:
        """Answer a request with an error, unless it has its answer."""
        if not request.closed:
            requestlog.failed(request, error)
            self.close(request)
            self.refuse(request.peer, request.id, error, request.model)

    def close(self, request: Request) -> None:
        """Forget a request that nobody waits for."""
        self._scheduler.close(request)
        self._ledger.remove(request)

    def refuse(self, peer: bytes, request_id: bytes, error: RemoteError, model: str = "") -> None:
        """Send an error reply; `model` is what it counts under."""
        self._metrics.failures[model, error.code] += 1
        self._send(peer, error_reply(request_id, error.code, error.message, error.retryable, error.details))

    def _keep_errors(
        self, request: Request, batch: Batch, start: int, stop: int, errors: list[ItemError]
    ) -> bool:
        """Note errors of single items; False where the engine did not tell good ones from bad and they run again."""
        # A suspect rides alone, but for what was in a shared batch already when it became one.
        untold = any(error.code == Cancelled.code for error in errors)
        if untold and (not request.suspect or _shared(batch)):
            self._run_alone(request, batch, start, stop)
            return False
        self._quarantine.note_items(request, batch.version, errors)
        request.note_errors(errors)
        return True

    def _fail_batch(self, batch: Batch, error: RemoteError) -> None:
        """Fail the items of a batch of one request; of several one may be the culprit, and each runs alone."""
        shared = _shared(batch)
        for request, start, stop in batch.slices:
            if request.closed:
                continue
            if shared:
                self._run_alone(request, batch, start, stop)
                continue
            if stop - start == 1:
                alone = ItemError(start, error.code, error.message)
                self._quarantine.note_items(request, batch.version, [alone])
            if stop - start == request.items:
                self.fail(request, error)
            elif request.fail(start, stop - start, error):
                self._answer(request, batch.version)

    def _run_alone(self, request: Request, batch: Batch, start: int, stop: int) -> None:
        if batch.generation == self.generation:
            self._scheduler.run_alone(request, start, stop)
        else:
            # Rows of two generations must not mix.
            self.fail(request, EngineCrashed("the model was changed while this request ran; send it again"))

    def _answer(self, request: Request, version: str) -> None:
        errors = sorted(request.item_errors, key=lambda error: error.item)
        if len(errors) == request.items:
            self.fail(request, from_wire(errors[0].code, errors[0].message, {"item": errors[0].item}))
            return
        now = self._clock()
        reply = ReplyHeader(
            v=VERSION,
            id=request.id,
            model=request.model,
            version=version,
            item_errors=tuple(errors),
            timing=request.timing(now),
        )
        try:
            frames = encode_reply(reply, request.outputs())
        except (ValueError, ProtocolError) as error:
            self.fail(request, ModelFailed(str(error)))
            return
        self._metrics.models[request.model].answered(now - request.arrived, request.queue_us * 1e-6)
        requestlog.answered(request, now)
        self.close(request)
        self._send(request.peer, frames)


def _error_of(batch: Batch, header: ReplyHeader, outputs: Tensors) -> RemoteError | None:
    """What a whole batch failed of."""
    if header.error is not msgspec.UNSET:
        return from_wire(header.error.code, header.error.message, header.error.details)
    if any([tensor.items != batch.items for tensor in outputs.values()]):
        return ModelFailed("the model answered another number of items than it was given")
    return None


def _answer_too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the answer exceeds max_peer_bytes = {limit}; ask for fewer items at once",
        {"limit": "max_peer_bytes"},
    )


def _within(errors: Sequence[ItemError], low: int, high: int, shift: int) -> list[ItemError]:
    """The errors of a batch's rows `low` to `high`, numbered as items of their request."""
    return [ItemError(e.item + shift, e.code, e.message) for e in errors if low <= e.item < high]


def _shared(batch: Batch) -> bool:
    """Whether a batch holds items of several requests."""
    return batch.slices[0][0] is not batch.slices[-1][0]
