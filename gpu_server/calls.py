"""What a client does, step by step and without waiting: shared by `Client` and `AsyncClient`.

Each call is a generator. It yields a future to wait for, or a function to run where blocking is allowed, and is sent the
result; its return value is the call's.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_server import config, curve, tokenizing
from gpu_server import endpoint as endpoints
from gpu_server.config import ClientConfig
from gpu_server.connection import Reply
from gpu_server.deadline import Deadline
from gpu_server.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    StaleTokenizer,
    UnsupportedOperation,
    from_wire,
)
from gpu_server.pending import MAX_TIMEOUT_S
from gpu_server.per_process import PerProcess
from gpu_server.sending import Sending
from gpu_server.sizes import check_size
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire import VERSION, Limits, RequestHeader, Tensor, Tensors
from gpu_server.wire.convert import as_tensor
from gpu_server.wire.documents import (
    PAIR_KINDS,
    Hello,
    InputInfo,
    ModelInfo,
    Status,
    TextInfo,
    answers_to,
    from_json,
)
from gpu_server.wire.monitoring import History, history_from_json

Vectors = NDArray[np.float32]
Value = NDArray[Any] | list[Any]
Param = bool | int | float | str
Params = Mapping[str, Param]
Priority = Literal[0, 1, 2]
Timeout = float | Deadline | None
"""Seconds, the deadline of the call that this one is a step of, or None for the client's own time-out."""

T = TypeVar("T")
Call = Generator[Future[Reply] | Callable[[], Any], Any, T]

ASK_TIMEOUT_S = 5.0
HELLO_AGE_S = 2.0
"""How long the list of models is believed: models come and go while a connection stays."""


class Calls:
    """The calls of one client, over one connection per process, which is closed when nothing holds the calls any more."""

    def __init__(self, endpoint: str | None, timeout_s: float, settings: ClientConfig | None = None) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s is {timeout_s}; it must be more than 0 seconds")
        self.endpoint = endpoint or endpoints.client_default()
        keys = curve.for_client(settings or config.client(), self.endpoint)
        self.timeout_s = timeout_s
        self._settings = settings
        self.connections = PerProcess(self.endpoint, keys)
        self._hello: tuple[object, float, Hello] | None = None
        self._tokenizers: dict[str, TextTokenizer] = {}
        weakref.finalize(self, self.connections.abandon).atexit = False

    def __reduce__(self) -> tuple[type[Calls], tuple[str, float, ClientConfig | None]]:
        """Made anew where it is unpickled: a connection is its process's alone, and a key stays in its file."""
        return type(self), (self.endpoint, self.timeout_s, self._settings)

    def deadline(self, timeout_s: Timeout) -> Deadline:
        """When a call that starts now must have ended. Raises InvalidRequest on seconds that are none, or less than 0."""
        if isinstance(timeout_s, Deadline):
            return timeout_s
        if timeout_s is not None and not timeout_s >= 0:
            raise InvalidRequest(
                f"timeout_s is {timeout_s}; it must be 0 seconds or more", {"field": "timeout_s"}
            )
        return Deadline.after(self.timeout_s if timeout_s is None else timeout_s)

    def request(
        self, inputs: Tensors | None = None, *, timeout_s: Timeout = None, **options: Any
    ) -> Call[Reply]:
        """One request as the protocol has it; options as `submit`."""
        deadline = self.deadline(timeout_s)
        if inputs:
            check_size(inputs, (yield from self.hello(timeout_s=deadline)).limits)
        reply: Reply = yield self.submit(inputs, deadline, **options)
        return reply

    def requests(
        self, parts: Iterable[Tensors], *, timeout_s: Timeout = None, **options: Any
    ) -> Call[list[Reply]]:
        """Several requests, a few at a time, by one deadline; options as `submit`. One that fails fails all."""
        deadline = self.deadline(timeout_s)
        limits = (yield from self.hello(timeout_s=deadline)).limits
        with self.sending(limits, deadline, **options) as sending:
            for part in parts:
                yield from sending.add(part)
            yield from sending.finish()
        return sending.replies

    def sending(self, limits: Limits, deadline: Deadline, **options: Any) -> Sending:
        """Sends several requests within the limits; options as `submit`."""

        def submit(part: Tensors) -> Future[Reply]:
            check_size(part, limits)
            return self.submit(part, deadline, **options)

        return Sending(submit)

    def submit(
        self,
        inputs: Tensors | None,
        deadline: Deadline,
        *,
        op: str = "infer",
        model: str = "",
        params: Params | None = None,
        priority: Priority = 1,
        digest: str = "",
        traceparent: str = "",
    ) -> Future[Reply]:
        """Send a request whose size has been checked."""
        header = RequestHeader(
            v=VERSION, id=b"-", op=op, model=model, params=dict(params or {}), priority=priority, digest=digest,
            traceparent=traceparent,
        )  # fmt: skip
        return self.connections.get().submit(header, inputs, deadline.left())

    def hello(self, refresh: bool = False, timeout_s: Timeout = None) -> Call[Hello]:
        """Versions, limits and models; kept for `HELLO_AGE_S`, or until the connection changes."""
        connection = self.connections.get()
        key, now = (connection.serial, connection.generation), time.monotonic()
        known = self._hello
        if not refresh and known is not None and known[0] == key and now < known[1]:
            return known[2]
        reply = yield from self._ask("hello", timeout_s)
        hello = _hello_of(reply)
        self._hello = (key, now + HELLO_AGE_S, hello) if hello.state == "ready" else None
        return hello

    def status(self, timeout_s: Timeout = None) -> Call[Status]:
        """The daemon's state."""
        reply = yield from self._ask("status", timeout_s)
        return from_json(Status, reply.outputs["document"].strings()[0])

    def metrics(self, timeout_s: Timeout = None) -> Call[str]:
        """The daemon's metrics."""
        reply = yield from self._ask("metrics", timeout_s)
        return reply.outputs["metrics"].strings()[0]

    def history(self, since: int = 0, timeout_s: Timeout = None) -> Call[History]:
        """The last minutes of service."""
        timeout_s = self.deadline(timeout_s).left(ASK_TIMEOUT_S)
        reply = yield from self.request(op="history", params={"since": since}, timeout_s=timeout_s)
        return history_from_json(reply.outputs["document"].raw_strings()[0])

    def models(self, timeout_s: Timeout = None) -> Call[list[ModelInfo]]:
        """The models that are served, the default first."""
        deadline = self.deadline(timeout_s)
        hello = yield from self.hello(timeout_s=deadline)
        if not hello.models:
            # A daemon that lets requests wait for the first load answers when that is done, any other at once.
            reply: Reply = yield self.submit(None, deadline, op="hello", params={"wait": True})
            hello = _hello_of(reply)
        if not hello.models:
            raise ModelLoading("the models are still loading", {"phase": hello.state})
        return list(hello.models)

    def model(self, name: str = "", timeout_s: Timeout = None) -> Call[ModelInfo]:
        """Facts of one model; asks anew before it says that there is none of that name."""
        deadline = self.deadline(timeout_s)
        for refresh in (False, True):
            if refresh:
                yield from self.hello(refresh=True, timeout_s=deadline)
            models = yield from self.models(deadline)
            exact = [info for info in models if info.name == name]
            for info in exact or models:
                if not name or answers_to(info, name):
                    return info
        names = [m.name for m in models]
        raise ModelNotFound(f"model {name!r} is not served; served: {', '.join(names)}", {"models": names})

    def tokenizer(self, model: str = "", timeout_s: Timeout = None) -> Call[TextTokenizer | None]:
        """The model's tokenizer, fetched once per digest; None when `tokenizers` is not installed here."""
        deadline = self.deadline(timeout_s)
        info = yield from self.model(model, deadline)
        if info.text is None:
            raise UnsupportedOperation(f"model {info.name!r} takes no text", {"model": info.name})
        if not tokenizing.available():
            return None
        known = self._tokenizers.get(info.name)
        if known is None or known.info != info.text:
            known = yield partial(self._load_tokenizer, info.name, info.text, deadline)
        return known

    def _load_tokenizer(self, name: str, text: TextInfo, deadline: Deadline) -> TextTokenizer:
        """The tokenizer, loaded by one thread for all: a large one takes seconds of the GIL and hundreds of MiB."""
        loading = self.connections.get().loading
        if not loading.acquire(timeout=deadline.left(MAX_TIMEOUT_S)):
            raise DeadlineExceeded(f"the tokenizer of model {name!r} was not there before the deadline")
        try:
            known = self._tokenizers.get(name)
            if known is None or known.info != text:
                asked = Deadline.after(deadline.left(ASK_TIMEOUT_S))
                reply = self.submit(None, asked, op="tokenizer", model=name).result()
                known = TextTokenizer(reply.outputs["tokenizer"].raw_strings()[0], text)
                known.prepare()
                self._tokenizers[name] = known
            return known
        finally:
            loading.release()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        params: Params | None = None,
        priority: Priority = 1,
        timeout_s: Timeout = None,
        traceparent: str = "",
    ) -> Call[Reply]:
        """Run any model on Python values."""
        deadline = self.deadline(timeout_s)
        info = yield from self.model(model, deadline)
        while True:
            try:
                reply = yield from self.request(
                    to_tensors(info, inputs), model=info.name, params=params, priority=priority,
                    timeout_s=deadline, traceparent=traceparent,
                )  # fmt: skip
                return reply
            except (InvalidRequest, ModelNotFound, StaleTokenizer):
                # The daemon may have changed the model since it was asked what it takes.
                yield from self.hello(refresh=True, timeout_s=deadline)
                known, info = info, (yield from self.model(model, deadline))
                if info == known:
                    raise

    def _ask(self, op: str, timeout_s: Timeout, model: str = "") -> Call[Reply]:
        return self.request(op=op, model=model, timeout_s=self.deadline(timeout_s).left(ASK_TIMEOUT_S))


def withdraw(call: Call[Any], step: object) -> None:
    """End a call that may be at one of its steps: what it has asked for and not got is cancelled."""
    if isinstance(step, Future):
        step.cancel()
    call.close()


def _hello_of(reply: Reply) -> Hello:
    return from_json(Hello, reply.outputs["document"].strings()[0])


def to_tensors(info: ModelInfo, inputs: Mapping[str, Any]) -> Tensors:
    """Wire tensors of a request's inputs, by what the model declares.

    Raises InvalidRequest naming the input, UnsupportedOperation on pairs for a model that takes none.
    """
    declared = {i.name: i for i in info.inputs}
    if info.text is not None and set(inputs) in ({"text"}, {"text", "text_pair"}):
        check_pairs(info, "text_pair" in inputs)
        declared = {name: InputInfo(name, "utf8") for name in inputs}
    if declared and set(inputs) != set(declared):
        wanted = ", ".join(i.name for i in info.inputs)
        if info.text is not None:
            wanted = f"{'text (and text_pair)' if info.kind in PAIR_KINDS else 'text'} or {wanted}"
        raise InvalidRequest(
            f"model {info.name!r} takes the inputs: {wanted}; got: {', '.join(inputs) or 'none'}"
        )
    if not inputs:
        raise InvalidRequest(f"model {info.name!r} needs at least one input")
    tensors = {}
    for name, values in inputs.items():
        known = declared.get(name)
        dtype = known.dtype if known else None
        ragged = (known.shape[:1] == (-1,)) if known else None
        try:
            tensors[name] = as_tensor(values, dtype, ragged)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"input {name!r}: {error}", {"field": name}) from None
        if tensors[name].items == 0:
            raise InvalidRequest(f"input {name!r} has no items", {"field": name})
    return tensors


def check_pairs(info: ModelInfo, pairs: bool) -> None:
    """Raise UnsupportedOperation on pairs of texts for a model that takes none."""
    if pairs and info.kind not in PAIR_KINDS:
        raise UnsupportedOperation(
            f"model {info.name!r} takes no pairs of texts", {"model": info.name, "kind": info.kind}
        )


def from_tensor(tensor: Tensor) -> Value:
    """A Python value of an output, the caller's own: an array when dense, else a list with one entry per item."""
    if tensor.dtype == "utf8":
        return tensor.strings()
    if tensor.dtype == "bytes":
        return tensor.raw_strings()
    return tensor.to_numpy().copy() if tensor.offsets is None else [row.copy() for row in tensor.rows()]


def raise_item_errors(reply: Reply, first: int = 0) -> None:
    """Raise the first per-item error of a reply whose row 0 is item `first` of the caller."""
    if reply.header.item_errors:
        failed = reply.header.item_errors[0]
        raise from_wire(
            failed.code, f"item {first + failed.item}: {failed.message}", {"item": first + failed.item}
        )
