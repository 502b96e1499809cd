"""The daemon as the handlers see it: models, and requests that end by one deadline or with their caller."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from flask import current_app

from gpu_server.calls import Params, Priority, raise_item_errors
from gpu_server.client import Client
from gpu_server.connection import Reply
from gpu_server.deadline import Deadline
from gpu_server.errors import (
    InvalidRequest,
    MissingDependency,
    StaleTokenizer,
    TooLarge,
    UnsupportedOperation,
)
from gpu_server.sizes import split_to_fit
from gpu_server.text_calls import not_a
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire import Limits, Tensors
from gpu_server.wire.documents import Hello, ModelInfo, Status
from gpu_server.wire.monitoring import History
from web.call import Call
from web.spans import SPANS, Spans
from web.waiting import Patience

T = TypeVar("T")
ASK_TIMEOUT_S = 1.5


class Backend:
    """The calls of one HTTP request; all together end by its deadline, each with a result or a RemoteError.

    timeout_s: what the caller allows, where that is less than the setting.
    """

    def __init__(self, call: Call, timeout_s: float | None = None) -> None:
        self.client = call.shared.client
        self.settings = call.settings
        self.counts = call.shared.counts
        self.traceparent = call.traceparent
        self.spans: Spans | None = call.environ.get(SPANS)
        most = self.settings.timeout_s
        # From the request's arrival: a handler that calls others must not have the time of each of them.
        self.deadline = Deadline(call.arrived + (most if timeout_s is None else min(timeout_s, most)))
        self._wait = Patience(call.environ)
        self._hello: Hello | None = None

    def status(self) -> Status:
        """The daemon's state, asked beside the inference queue."""
        return self.client.status(timeout_s=self.deadline.left(ASK_TIMEOUT_S))

    def metrics(self) -> str:
        """The daemon's metrics as Prometheus text."""
        return self.client.metrics(timeout_s=self.deadline.left(ASK_TIMEOUT_S))

    def history(self, since: int) -> History:
        """The daemon's last minutes, after point number `since`."""
        return self.client.history(since, timeout_s=self.deadline.left(ASK_TIMEOUT_S))

    def limits(self) -> Limits:
        """What the daemon takes in one request."""
        return self._facts().limits

    def models(self) -> list[ModelInfo]:
        """The served models, the default first. Raises ModelLoading before any is ready."""
        return list(self._facts().models) or self.client.models(timeout_s=self.deadline.left())

    def _facts(self) -> Hello:
        """Limits and models, asked for once a request."""
        if self._hello is None:
            self._hello = self.client.hello(timeout_s=self.deadline.left())
        return self._hello

    def model(self, name: str = "") -> ModelInfo:
        """The served model of that name, or whose name ends in it after a «/», "" for the first. Raises ModelNotFound."""
        return self.client.model(name, timeout_s=self.deadline.left())

    def default_model(self, name: str = "") -> ModelInfo:
        """The model of that name; without one the first that is no custom model, else the first."""
        if name:
            return self.model(name)
        infos = self.models()
        return next((info for info in infos if info.kind != "custom"), infos[0])

    def model_of_kind(self, name: str, kinds: Iterable[str], what: str) -> ModelInfo:
        """The model of that name, "" for the first of these kinds. Raises UnsupportedOperation if none is `what`."""
        infos = [self.model(name)] if name else self.models()
        for info in infos:
            if info.kind in kinds:
                return info
        if len(infos) == 1:
            raise not_a(infos[0], what)
        served = ", ".join(f"{info.name} ({info.kind})" for info in infos)
        raise UnsupportedOperation(f"no served model is {what}; served: {served}")

    def with_tokenizer(
        self, pick: Callable[[], ModelInfo], work: Callable[[ModelInfo, TextTokenizer], T]
    ) -> T:
        """What `work` makes of a model and its tokenizer; once more, with both anew, where the daemon's has changed."""
        try:
            return work(*self._tokenizer_of(pick()))
        except StaleTokenizer:
            self._hello = self.client.hello(refresh=True, timeout_s=self.deadline.left())
            return work(*self._tokenizer_of(pick()))

    def _tokenizer_of(self, info: ModelInfo) -> tuple[ModelInfo, TextTokenizer]:
        tokenizer = self.client.tokenizer(info.name, timeout_s=self.deadline.left())
        if tokenizer is None:
            raise MissingDependency("tokenising needs the package tokenizers: pip install tokenizers")
        return info, tokenizer

    def tokenized(self, model: str, seconds: float) -> None:
        """Note the tokenising of this request's texts, which has just ended."""
        self.counts.tokenized(model, seconds)
        if self.spans is not None:
            self.spans.tokenized(model, seconds)

    def send(
        self,
        inputs: Tensors,
        info: ModelInfo,
        params: Params | None = None,
        *,
        digest: str = "",
        priority: Priority = 1,
    ) -> Reply:
        """One request to a model."""
        begun_ns = time.time_ns()
        reply = self.client.request(
            inputs,
            model=info.name,
            params=params,
            priority=priority,
            digest=digest,
            timeout_s=self.deadline.left(),
            traceparent=self.traceparent,
            wait=self._wait,
        )
        if self.spans is not None:
            self.spans.answered(reply, begun_ns)
        self.check_answer(_size(reply))
        return reply

    def send_parts(
        self, inputs: Tensors, info: ModelInfo, params: Params | None = None, *, digest: str = ""
    ) -> list[Reply]:
        """Items in as many requests as the daemon's limits make of them; one that fails alone fails all, by its number."""
        parts = split_to_fit(inputs, self.limits())
        begun_ns = time.time_ns()
        replies = self.client.requests(
            parts,
            model=info.name,
            params=params,
            digest=digest,
            timeout_s=self.deadline.left(),
            traceparent=self.traceparent,
            wait=self._wait,
        )
        self.check_answer(sum(map(_size, replies)))
        done = 0
        for part, reply in zip(parts, replies, strict=True):
            if self.spans is not None:
                self.spans.answered(reply, begun_ns)
            raise_item_errors(reply, done)
            done += next(iter(part.values())).items
        return replies

    def check_batch(self, items: int, field: str) -> None:
        """Raise InvalidRequest, as TEI words it, where a request has more inputs than the setting allows."""
        limit = self.settings.max_client_batch_size
        if items > limit:
            raise InvalidRequest(
                f"{field}: batch size {items} > maximum allowed batch size {limit} (max_client_batch_size)",
                {"field": field, "limit": "max_client_batch_size"},
            )

    def check_answer(self, size: int, instead: str = "") -> None:
        """Raise TooLarge where an answer's outputs have more bytes than the setting allows; `instead` says what to ask."""
        limit = self.settings.max_answer_bytes
        if size > limit:
            raise TooLarge(
                f"{size} bytes of outputs exceed max_answer_bytes = {limit}: {instead or 'ask for fewer items'}",
                {"limit": "max_answer_bytes"},
            )

    def check_tokens(self, tokens: int, field: str) -> None:
        """Raise InvalidRequest where a request has more tokens than the setting allows."""
        limit = self.settings.max_client_tokens
        if limit and tokens > limit:
            raise InvalidRequest(
                f"{field}: {tokens} tokens exceed max_client_tokens = {limit}",
                {"field": field, "limit": "max_client_tokens"},
            )


def _size(reply: Reply) -> int:
    return sum(len(tensor.data) for tensor in reply.outputs.values())


def get_client() -> Client:
    """The client of the current app, for routes of your own."""
    client: Client = current_app.extensions["gpu_server"].client
    return client
