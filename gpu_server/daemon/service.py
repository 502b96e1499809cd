"""What the daemon does with messages and batches: admit, queue, dispatch, answer. Owns every open request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import msgspec

from gpu_server.daemon import admission
from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.ledger import Ledger
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.request import Batch, Request
from gpu_server.daemon.scheduler import Policy, Scheduler
from gpu_server.daemon.text import TextPool
from gpu_server.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineCrashed,
    InternalError,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    ProtocolError,
    RemoteError,
    ShuttingDown,
    StaleTokenizer,
    TooLarge,
    UnsupportedOperation,
    from_wire,
)
from gpu_server.wire import (
    VERSION,
    Buffer,
    Limits,
    ReplyHeader,
    RequestHeader,
    Tensor,
    Tensors,
    decode_request,
    document,
    encode_reply,
    error_reply,
    refuse_cut,
)
from gpu_server.wire.documents import ModelInfo

log = logging.getLogger(__name__)

Key = tuple[bytes, bytes]
"""A request among all: its peer and its id."""

MAX_ATTEMPTS = 2
MAX_TOKENIZING = 4096
Send = Callable[[bytes, list[Buffer]], None]
Documents = Callable[[str], Tensors]


class _Tokenizing(NamedTuple):
    """A request whose text is being tokenised; `size` in bytes."""

    header: RequestHeader
    deadline: float
    size: int
    future: Future[None]


class Service:
    """Accepted requests from message to reply, over an injected clock and a `send(peer, frames)`.

    documents: makes the outputs of `hello`, `status` and `metrics`. phase: what `model_loading` errors say.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        metrics: Metrics,
        limits: Limits,
        clock: Callable[[], float],
        send: Send,
        documents: Documents,
        text: TextPool,
        *,
        default_deadline_s: float,
        batches_in_flight: int,
    ) -> None:
        self.models: dict[str, ModelInfo] = {}
        self.phase = "starting"
        self.draining = False
        self._tokenizers: dict[str, bytes] = {}
        self._link: EngineLink | None = None
        self._ledger = Ledger()
        self._tokenizing: dict[Key, _Tokenizing] = {}
        self._scheduler = scheduler
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._send = send
        self._documents = documents
        self._text = text
        self._default_deadline_s = default_deadline_s
        self._batches_in_flight = batches_in_flight
        self._operations: dict[str, Callable[[bytes, RequestHeader, Tensors], None]] = {
            "infer": self._infer,
            "cancel": self._cancel,
            "tokenizer": self._tokenizer,
            **dict.fromkeys(("hello", "status", "metrics"), self._document),
        }

    @property
    def open_requests(self) -> int:
        """Requests that still owe a reply."""
        return len(self._ledger) + len(self._tokenizing)

    def handle(self, peer: bytes, frames: Sequence[Buffer], whole: bool = True) -> None:
        """One message from a client; whatever it holds, it ends in a reply or a counted drop.

        whole: False if it was cut at `max_request_bytes` or the most frames a message may have.
        """
        try:
            header, inputs = (
                decode_request(frames, self._limits) if whole else refuse_cut(frames, self._limits)
            )
        except ProtocolError as error:
            self._refuse_malformed(peer, frames, error)
            return
        operation = self._operations.get(header.op)
        try:
            if operation is None:
                raise UnsupportedOperation(f"operation {header.op!r} is not offered on this socket")
            operation(peer, header, inputs)
        except RemoteError as error:
            self._reply_error(peer, header.id, error)
        except Exception:
            log.exception("defect", extra={"op": header.op, "id": header.id.hex()})
            self._reply_error(
                peer, header.id, InternalError("a defect in the server; its log has the details")
            )

    def engine_ready(self, link: EngineLink) -> None:
        """Take a loaded engine into use; its models are served from now on.

        Requests that waited for it with token ids of another tokenizer are refused.
        """
        self._link = link
        for request in self._ledger.all():
            before, now = self.models[request.model], link.models.get(request.model)
            if now is None or now.text != before.text:
                self._fail(
                    request, StaleTokenizer(f"model {request.model!r} was loaded anew with another tokenizer")
                )
        self.models = dict(link.models)
        self._tokenizers = dict(link.tokenizers)
        for info in self.models.values():
            policy = Policy(info.max_batch_tokens, info.max_batch_items, info.padded)
            self._scheduler.set_policy(info.name, policy)
            self._metrics.model(info.name)
            if info.text is not None:
                self._text.add(info.name, info.text, link.tokenizers[info.name])

    def engine_lost(self, link: EngineLink) -> None:
        """Put the batches of a lost engine back, once; requests that were lost before are answered."""
        if self._link is link:
            self._link = None
        # One attempt a crash, also for a request with items in several batches.
        lost = dict.fromkeys(r for batch in link.batches.values() for r in self._scheduler.requeue(batch))
        link.batches.clear()
        for request in lost:
            request.attempts += 1
            if request.attempts >= MAX_ATTEMPTS:
                twice = EngineCrashed("the engine process died while it ran this request, twice")
                self._fail(request, twice)

    def dispatch(self) -> None:
        """Give the engine what it can take now: a partial batch when it is idle, full ones ahead of that."""
        link = self._link
        if link is None:
            return
        while len(link.batches) < self._batches_in_flight:
            batch = self._scheduler.next_batch(idle=not link.batches, models=link.models)
            if batch is None:
                return
            now = self._clock()
            for request, _, _ in batch.slices:
                request.queue_us = int((now - request.arrived) * 1e6)
            batch.sent = now
            link.send(batch)

    def batch_done(self, batch: Batch, header: ReplyHeader, outputs: Tensors) -> None:
        """Share a batch's answer out to its requests."""
        # The engine first: it would stand idle for as long as the replies take.
        self.dispatch()
        compute_us = header.timing.compute_us if header.timing is not msgspec.UNSET else 0
        arrived = min(request.arrived for request, _, _ in batch.slices)
        self._metrics.models[batch.model].count_batch(
            batch.items, batch.cost, compute_us / 1e6, batch.sent - arrived
        )
        self._scheduler.learn(batch, compute_us / 1e6)
        if header.error is not msgspec.UNSET:
            error = from_wire(header.error.code, header.error.message, header.error.details)
            for request, _, _ in batch.slices:
                self._fail(request, error)
            return
        if any(tensor.items != batch.items for tensor in outputs.values()):
            wrong = ModelFailed("the model answered another number of items than it was given")
            for request, _, _ in batch.slices:
                self._fail(request, wrong)
            return
        columns = {name: tensor.split(batch.sizes()) for name, tensor in outputs.items()}
        at = 0
        for number, (request, start, stop) in enumerate(batch.slices):
            items = stop - start
            if request.closed:
                self._metrics.dropped["late_result"] += 1
            else:
                request.ran_in(batch, compute_us)
                if header.item_errors:
                    request.note_errors(header.item_errors, at, start, items)
                if request.take(start, {name: column[number] for name, column in columns.items()}, items):
                    self._answer(request)
            at += items

    def expire(self) -> None:
        """Answer requests whose deadline has passed."""
        now = self._clock()
        late = DeadlineExceeded("the deadline passed before the answer was ready")
        for request in self._ledger.expired(now):
            self._fail(request, late)
        for key in [key for key, waiting in self._tokenizing.items() if waiting.deadline <= now]:
            self._fail_tokenizing(key, late)

    def next_deadline(self) -> float | None:
        """When `expire` may next have work, on the clock."""
        due = [waiting.deadline for waiting in self._tokenizing.values()]
        queued = self._ledger.next_deadline()
        return min(due if queued is None else [*due, queued], default=None)

    def peer_gone(self, peer: bytes) -> None:
        """Drop what a lost connection still waits for."""
        for request in self._ledger.of_peer(peer):
            self._close(request)
        for key in [key for key in self._tokenizing if key[0] == peer]:
            self._stop_tokenizing(key)

    def fail_all(self, error: RemoteError) -> None:
        """Answer every open request with an error."""
        for request in self._ledger.all():
            self._fail(request, error)
        for key in list(self._tokenizing):
            self._fail_tokenizing(key, error)

    def _infer(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        if self.draining:
            raise ShuttingDown("the server is stopping")
        info = admission.find_model(header.model, self.models, self.phase)
        if (peer, header.id) in self._ledger or (peer, header.id) in self._tokenizing:
            raise InvalidRequest("this id is already outstanding on this connection")
        now = self._clock()
        deadline = now + (header.deadline_ms / 1e3 if header.deadline_ms else self._default_deadline_s)
        if admission.takes_text(info, inputs):
            self._tokenize(peer, header, inputs["text"], info, now, deadline)
            return
        self._admit(admission.build(header, inputs, info, peer=peer, arrived=now, deadline=deadline))

    def _admit(self, request: Request) -> None:
        self._scheduler.submit(request)
        self._ledger.add(request)
        metrics = self._metrics.models[request.model]
        metrics.requests += 1
        metrics.items += request.items

    def _tokenize(
        self,
        peer: bytes,
        header: RequestHeader,
        text: Tensor,
        info: ModelInfo,
        arrived: float,
        deadline: float,
    ) -> None:
        if max(text.lengths()) > self._limits.max_text_bytes:
            raise TooLarge(
                f"a text exceeds max_text_bytes = {self._limits.max_text_bytes}", {"limit": "max_text_bytes"}
            )
        held = sum(waiting.size for waiting in self._tokenizing.values())
        if len(self._tokenizing) >= MAX_TOKENIZING or held + len(text.data) > self._limits.max_request_bytes:
            raise Overloaded("too many texts wait to be tokenised", {"retry_after_ms": 100})
        options = admission.text_options(header.params)
        finished = partial(self._tokenized, peer, header, info, arrived)
        future = self._text.submit(info.name, text, options, finished)
        self._tokenizing[peer, header.id] = _Tokenizing(header, deadline, len(text.data), future)

    def _tokenized(
        self,
        peer: bytes,
        header: RequestHeader,
        info: ModelInfo,
        arrived: float,
        outcome: Tensor | RemoteError,
    ) -> None:
        waiting = self._tokenizing.get((peer, header.id))
        # By identity: the caller may have cancelled this request and used its id again.
        if waiting is None or waiting.header is not header:
            return
        del self._tokenizing[peer, header.id]
        try:
            if isinstance(outcome, RemoteError):
                raise outcome
            current = admission.find_model(info.name, self.models, self.phase)
            if current.text != info.text:
                raise StaleTokenizer(f"model {info.name!r} was loaded anew with another tokenizer")
            inputs = {"input_ids": outcome}
            self._admit(
                admission.build(
                    header, inputs, current, peer=peer, arrived=arrived, deadline=waiting.deadline
                )
            )
        except RemoteError as error:
            self._reply_error(peer, header.id, error)

    def _fail_tokenizing(self, key: Key, error: RemoteError) -> None:
        if self._stop_tokenizing(key):
            self._reply_error(*key, error)

    def _stop_tokenizing(self, key: Key) -> bool:
        """Forget a text; False if it is forgotten already (a failing reply to one drops all of its peer's)."""
        waiting = self._tokenizing.pop(key, None)
        if waiting is not None:
            waiting.future.cancel()
        return waiting is not None

    def _cancel(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        if not header.target:
            raise InvalidRequest("cancel needs a target")
        request = self._ledger.get(peer, header.target)
        cancelled = Cancelled("cancelled by the caller")
        if request is not None:
            self._fail(request, cancelled)
        else:
            self._fail_tokenizing((peer, header.target), cancelled)
        self._send(peer, encode_reply(ReplyHeader(v=VERSION, id=header.id)))

    def _tokenizer(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        info = admission.find_model(header.model, self.models, self.phase)
        if info.text is None:
            raise UnsupportedOperation(f"model {info.name!r} has no tokenizer")
        reply = ReplyHeader(v=VERSION, id=header.id, model=info.name, version=info.version)
        self._send(peer, encode_reply(reply, document("tokenizer", self._tokenizers[info.name])))

    def _document(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        self._send(peer, encode_reply(ReplyHeader(v=VERSION, id=header.id), self._documents(header.op)))

    def _answer(self, request: Request) -> None:
        try:
            outputs = request.outputs()
        except ValueError as error:
            self._fail(request, ModelFailed(str(error)))
            return
        errors = request.item_errors
        if len(errors) == request.items:
            self._fail(request, from_wire(errors[0].code, errors[0].message, {"item": errors[0].item}))
            return
        now = self._clock()
        metrics = self._metrics.models[request.model]
        metrics.success += 1
        metrics.duration.observe(now - request.arrived)
        reply = ReplyHeader(
            v=VERSION,
            id=request.id,
            model=request.model,
            version=self.models[request.model].version,
            item_errors=tuple(errors),
            timing=request.timing(now),
        )
        self._close(request)
        self._send(request.peer, encode_reply(reply, outputs))

    def _fail(self, request: Request, error: RemoteError) -> None:
        if not request.closed:
            self._close(request)
            self._reply_error(request.peer, request.id, error)

    def _close(self, request: Request) -> None:
        self._scheduler.close(request)
        self._ledger.remove(request)

    def _reply_error(self, peer: bytes, request_id: bytes, error: RemoteError) -> None:
        self._metrics.failures[error.code] += 1
        self._send(peer, error_reply(request_id, error.code, error.message, error.retryable, error.details))

    def _refuse_malformed(self, peer: bytes, frames: Sequence[Buffer], error: ProtocolError) -> None:
        if len(frames) < 2 or len(frames[0]):
            self._metrics.dropped["unreadable"] += 1
            return
        self._reply_error(peer, error.request_id, from_wire(error.code, str(error), error.details))
