"""What the daemon does with messages and answers: admit, queue, refuse, reply. Owns every open request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from gpu_server.daemon import admission
from gpu_server.daemon.answers import Answers, Send
from gpu_server.daemon.dispatcher import Dispatcher
from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.filling import policy_of
from gpu_server.daemon.handover import carry_over
from gpu_server.daemon.ledger import Ledger
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.quarantine import Quarantine
from gpu_server.daemon.request import Batch, Request
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.daemon.text import TextPool
from gpu_server.daemon.text_ledger import Key, TextLedger
from gpu_server.daemon.waiting_room import Waiting, WaitingRoom
from gpu_server.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineCrashed,
    InternalError,
    InvalidRequest,
    ModelLoading,
    ProtocolError,
    RemoteError,
    ShuttingDown,
    StaleTokenizer,
    TooLarge,
    UnsupportedOperation,
    from_wire,
)
from gpu_server.tokenizing import prompt_params
from gpu_server.wire import (
    VERSION,
    Buffer,
    Limits,
    ReplyHeader,
    RequestHeader,
    Tensors,
    Timing,
    decode_request,
    document,
    encode_reply,
    error_reply,
    refuse_cut,
)
from gpu_server.wire.documents import ModelInfo

log = logging.getLogger(__name__)

LATE = "the deadline passed before the answer was ready"
MAX_ATTEMPTS = 2
Documents = Callable[[bytes, RequestHeader, Tensors], Tensors]
Operation = Callable[[bytes, RequestHeader, Tensors], None]


class Service:
    """Accepted requests from message to reply, over an injected clock and a `send(peer, frames)`.

    documents: makes the outputs of operations that no model has a part in. phase: what `model_loading` errors say.
    max_answer_bytes: what may gather for an answer that several batches give.
    max_early_bytes: what requests that come before the first load is done may hold while they wait for it; 0 refuses them.
    draining: refuse new requests; successor: and say that another daemon follows on this socket.
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
        max_answer_bytes: int,
        max_early_bytes: int = 0,
    ) -> None:
        self.models: dict[str, ModelInfo] = {}
        self.phase = "starting"
        self.draining = False
        self.successor = False
        self._tokenizers: dict[str, bytes] = {}
        self._served: EngineLink | None = None
        self._ledger = Ledger()
        self._tokenizing = TextLedger(limits.max_request_bytes)
        self._scheduler = scheduler
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._dispatcher = Dispatcher(scheduler, clock, batches_in_flight)
        self._quarantine = Quarantine(clock)
        self._answers = Answers(
            scheduler, self._ledger, metrics, self._quarantine, clock, send, max_answer_bytes
        )
        self._early = WaitingRoom(max_early_bytes, self._answers.refuse)
        self._send = send
        self._documents = documents
        self._text = text
        self._default_deadline_s = default_deadline_s
        self._operations = self._offered()

    @property
    def open_requests(self) -> int:
        """Requests that still owe a reply."""
        return len(self._ledger) + len(self._tokenizing) + len(self._early)

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
        self._operate(peer, header, inputs)

    def _offered(self) -> dict[str, Operation]:
        return {
            "infer": self._infer,
            "cancel": self._cancel,
            "tokenizer": self._tokenizer,
            **dict.fromkeys(("hello", "status", "metrics", "history", "report"), self._document),
        }

    def _operate(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        operation = self._operations.get(header.op)
        try:
            if operation is None:
                raise UnsupportedOperation(f"operation {header.op!r} is not offered on this socket")
            try:
                operation(peer, header, inputs)
            except ModelLoading:
                self._wait_for_models(peer, header, inputs)
        except RemoteError as error:
            self._answers.refuse(peer, header.id, error, self._model_of(header))
        except Exception:
            log.exception("defect", extra={"op": header.op, "id": header.id.hex()})
            self._answers.refuse(
                peer, header.id, InternalError("a defect in the server; its log has the details")
            )

    def engine_ready(self, link: EngineLink) -> None:
        """Take a loaded engine into use; its models are served from now on. What the last one runs goes on there."""
        if self._served is not None:
            carry_over(self._ledger.all(), self._served, link, self._scheduler, self._answers.fail)
        self._dispatcher.link = self._served = link
        self._dispatcher.look_again()
        self._answers.generation = link.generation
        self.models = dict(link.models)
        self._tokenizers = dict(link.tokenizers)
        for info in self.models.values():
            self._scheduler.set_policy(info.name, policy_of(info))
            self._metrics.model(info.name)
            if info.text is not None:
                self._text.add(info.name, info.text, link.tokenizers[info.name])
        self._text.keep(self.models)
        for (peer, _), early in self._early.leave():
            early.header.deadline_ms = max(1, int((early.deadline - self._clock()) * 1e3))
            self._operate(peer, early.header, early.inputs)

    def engine_lost(self, link: EngineLink) -> None:
        """Put the batches of a lost engine back, once; requests that were lost before are answered."""
        if self._dispatcher.link is link:
            self._dispatcher.link = None
        # One attempt a crash, also for a request with items in several batches.
        lost = dict.fromkeys(r for batch in link.batches.values() for r in self._scheduler.requeue(batch))
        link.batches.clear()
        for request in lost:
            self._metrics.models[request.model].retries += 1
            request.attempts += 1
            if request.attempts >= MAX_ATTEMPTS:
                twice = EngineCrashed("the engine process died while it ran this request, twice")
                self._quarantine.note_crash(request, link.models[request.model].version, twice)
                self._answers.fail(request, twice)
        if self._served is not None:
            carry_over(lost, link, self._served, self._scheduler, self._answers.fail)

    def hold(self) -> None:
        """Send no more batches until the next engine is ready."""
        self._dispatcher.link = None

    def dispatch(self) -> float | None:
        """Give the engine what is due; returns when more will be, unless something happens before."""
        return self._dispatcher.dispatch()

    def batch_done(self, batch: Batch, header: ReplyHeader, outputs: Tensors) -> None:
        """Share a batch's answer out to its requests."""
        self._dispatcher.look_again()
        timing = header.timing if header.timing is not msgspec.UNSET else Timing()
        seconds = timing.compute_us / 1e6
        if header.error is msgspec.UNSET and not header.item_errors and not timing.batch_tokens:
            self._scheduler.learn(batch, seconds)
        else:
            self._scheduler.ended()
        if timing.batch_tokens:
            self._scheduler.lower_budget(batch.model, timing.batch_tokens)
        # The engine first: it would stand idle for as long as the replies take.
        self._dispatcher.dispatch()
        self._metrics.models[batch.model].ran(batch.items, batch.cost, seconds)
        self._answers.share(batch, header, outputs, timing.compute_us)

    def expire(self) -> None:
        """Answer requests whose deadline has passed."""
        now = self._clock()
        for request in self._ledger.expired(now):
            self._answers.fail(request, DeadlineExceeded(LATE))
        for key in self._tokenizing.expired(now):
            self._fail_tokenizing(key, DeadlineExceeded(LATE))
        self._early.expire(now, admission.loading(self.phase))

    def next_deadline(self) -> float:
        """When `expire` may next have work, on the clock; infinity if it will not."""
        return min(
            self._ledger.next_deadline(), self._tokenizing.next_deadline(), self._early.next_deadline()
        )

    def peer_gone(self, peer: bytes) -> None:
        """Drop what a lost connection still waits for."""
        for request in self._ledger.of_peer(peer):
            self._answers.close(request)
        for key in self._tokenizing.of_peer(peer):
            self._tokenizing.stop(key)
        self._early.drop(peer)

    def fail_all(self, error: RemoteError) -> None:
        """Answer every open request with an error."""
        for request in self._ledger.all():
            self._answers.fail(request, error)
        for key in self._tokenizing.all():
            self._fail_tokenizing(key, error)
        self._early.fail_all(error)

    def stop(self, successor: bool) -> None:
        """Refuse new requests, and those that wait for the first load; what is in the queue will be answered."""
        self.draining, self.successor = True, successor
        self._early.fail_all(self._shutting_down())

    def farewell(self) -> list[Buffer]:
        """What tells a connection that its requests without a reply were never read, and where to send them again."""
        error = self._shutting_down()
        return error_reply(b"", error.code, error.message, error.retryable, error.details)

    def _shutting_down(self) -> ShuttingDown:
        details = {"successor": True} if self.successor else None
        return ShuttingDown("the server takes no new requests: it drains or stops", details)

    def _wait_for_models(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        """Keep a request that came before the models. Raises ModelLoading where none is kept."""
        if not self._early.max_bytes or self.draining:
            raise admission.loading(self.phase)
        left_s = header.deadline_ms / 1e3 if header.deadline_ms else self._default_deadline_s
        self._early.add((peer, header.id), Waiting(header, inputs, self._clock() + left_s))

    def _infer(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        if self.draining:
            raise self._shutting_down()
        info = admission.find_model(header.model, self.models, self.phase)
        key = (peer, header.id)
        if key in self._ledger or key in self._tokenizing:
            raise InvalidRequest("this id is already outstanding on this connection")
        now = self._clock()
        deadline = now + (header.deadline_ms / 1e3 if header.deadline_ms else self._default_deadline_s)
        if admission.takes_text(info, inputs):
            self._tokenize(peer, header, inputs, info, now, deadline)
            return
        self._admit(admission.build(header, inputs, info, peer=peer, arrived=now, deadline=deadline))

    def _admit(self, request: Request) -> None:
        self._quarantine.check(request, self.models[request.model].version)
        self._scheduler.submit(request)
        self._ledger.add(request)
        self._metrics.models[request.model].accepted(request.items)

    def _tokenize(
        self,
        peer: bytes,
        header: RequestHeader,
        texts: Tensors,
        info: ModelInfo,
        arrived: float,
        deadline: float,
    ) -> None:
        if max(max(text.lengths()) for text in texts.values()) > self._limits.max_text_bytes:
            raise TooLarge(
                f"a text exceeds max_text_bytes = {self._limits.max_text_bytes}", {"limit": "max_text_bytes"}
            )
        size = sum(len(text.data) for text in texts.values())
        self._tokenizing.check_room(peer, size, header.priority)
        options = admission.text_options(header.params) | {"typed": admission.takes_types(info)}
        if info.text is not None:
            header.params |= prompt_params(info.text, options["prompt_name"])
        finished = partial(self._tokenized, peer, header, info, arrived)
        future = self._text.submit(info.name, texts, options, finished)
        self._tokenizing.add((peer, header.id), header, deadline, size, future)

    def _tokenized(
        self,
        peer: bytes,
        header: RequestHeader,
        info: ModelInfo,
        arrived: float,
        outcome: Tensors | RemoteError,
    ) -> None:
        deadline = self._tokenizing.take((peer, header.id), header)
        if deadline is None:
            return
        self._metrics.models[info.name].tokenize.observe(self._clock() - arrived)
        try:
            if isinstance(outcome, RemoteError):
                raise outcome
            current = admission.find_model(info.name, self.models, self.phase)
            if current.text != info.text:
                raise StaleTokenizer(f"model {info.name!r} was loaded anew with another tokenizer")
            self._admit(
                admission.build(header, outcome, current, peer=peer, arrived=arrived, deadline=deadline)
            )
        except RemoteError as error:
            self._answers.refuse(peer, header.id, error, info.name)

    def _fail_tokenizing(self, key: Key, error: RemoteError) -> None:
        header = self._tokenizing.stop(key)
        if header is not None:
            self._answers.refuse(*key, error, self._model_of(header))

    def _cancel(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        if not header.target:
            raise InvalidRequest("cancel needs a target")
        request = self._ledger.get(peer, header.target)
        cancelled = Cancelled("cancelled by the caller")
        if request is not None:
            self._answers.fail(request, cancelled)
        else:
            self._fail_tokenizing((peer, header.target), cancelled)
            self._early.fail((peer, header.target), cancelled)
        self._send(peer, encode_reply(ReplyHeader(v=VERSION, id=header.id)))

    def _tokenizer(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        info = admission.find_model(header.model, self.models, self.phase)
        if info.text is None:
            raise UnsupportedOperation(f"model {info.name!r} has no tokenizer")
        reply = ReplyHeader(v=VERSION, id=header.id, model=info.name, version=info.version)
        self._send(peer, encode_reply(reply, document("tokenizer", self._tokenizers[info.name])))

    def _document(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> None:
        self._send(
            peer, encode_reply(ReplyHeader(v=VERSION, id=header.id), self._documents(peer, header, inputs))
        )

    def _model_of(self, header: RequestHeader) -> str:
        """The name that a refused request counts under."""
        try:
            return (
                admission.find_model(header.model, self.models, self.phase).name
                if header.op == "infer"
                else ""
            )
        except RemoteError:
            return ""

    def _refuse_malformed(self, peer: bytes, frames: Sequence[Buffer], error: ProtocolError) -> None:
        if len(frames) < 2 or len(frames[0]):
            self._metrics.dropped["unreadable"] += 1
            return
        self._answers.refuse(peer, error.request_id, from_wire(error.code, str(error), error.details))
