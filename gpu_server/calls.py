"""What a client does, step by step and without waiting: shared by `Client` and `AsyncClient`.

Each call is a generator. It yields a future to wait for, or a function to run where blocking is allowed, and is sent the
result; its return value is the call's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_server import endpoint as endpoints
from gpu_server import tokenizing
from gpu_server.connection import PerProcess, Reply
from gpu_server.errors import (
    InvalidRequest,
    ModelLoading,
    ModelNotFound,
    StaleTokenizer,
    TooLarge,
    UnsupportedOperation,
    from_wire,
)
from gpu_server.tokenizing import Direction, TextTokenizer
from gpu_server.wire import VERSION, Limits, RequestHeader, Tensor, Tensors
from gpu_server.wire.convert import as_tensor
from gpu_server.wire.documents import Hello, ModelInfo, Status, from_json

Vectors = NDArray[np.float32]
Value = NDArray[Any] | list[Any]
Params = Mapping[str, bool | int | float | str]
Priority = Literal[0, 1, 2]

T = TypeVar("T")
Call = Generator[Future[Reply] | Callable[[], Any], Any, T]

ASK_TIMEOUT_S = 5.0


class Calls:
    """The calls of one client, over one connection per process."""

    def __init__(self, endpoint: str | None, timeout_s: float) -> None:
        self.endpoint = endpoint or endpoints.client_default()
        endpoints.check(self.endpoint)
        self.timeout_s = timeout_s
        self.connections = PerProcess(self.endpoint)
        self._hello: tuple[object, Hello] | None = None
        self._tokenizers: dict[str, TextTokenizer] = {}

    def request(
        self,
        inputs: Tensors | None = None,
        *,
        op: str = "infer",
        model: str = "",
        params: Params | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
        digest: str = "",
        traceparent: str = "",
    ) -> Call[Reply]:
        """One request as the protocol has it."""
        if inputs:
            check_size(inputs, (yield from self.hello()).limits)
        header = RequestHeader(
            v=VERSION, id=b"-", op=op, model=model, params=dict(params or {}), priority=priority, digest=digest,
            traceparent=traceparent,
        )  # fmt: skip
        budget = self.timeout_s if timeout_s is None else timeout_s
        reply: Reply = yield self.connections.get().submit(header, inputs, budget)
        return reply

    def hello(self, refresh: bool = False) -> Call[Hello]:
        """Versions, limits and models; kept until the connection changes."""
        connection = self.connections.get()
        key = (id(connection), connection.generation)
        if not refresh and self._hello is not None and self._hello[0] == key:
            return self._hello[1]
        reply = yield from self._ask("hello")
        hello = from_json(Hello, reply.outputs["document"].strings()[0])
        self._hello = (key, hello) if hello.state == "ready" else None
        return hello

    def status(self) -> Call[Status]:
        """The daemon's state."""
        reply = yield from self._ask("status")
        return from_json(Status, reply.outputs["document"].strings()[0])

    def metrics(self) -> Call[str]:
        """The daemon's metrics."""
        reply = yield from self._ask("metrics")
        return reply.outputs["metrics"].strings()[0]

    def models(self) -> Call[list[ModelInfo]]:
        """The models that are served, the default first."""
        hello = yield from self.hello()
        if not hello.models:
            raise ModelLoading("the models are still loading", {"phase": hello.state})
        return list(hello.models)

    def model(self, name: str = "") -> Call[ModelInfo]:
        """Facts of one model; asks anew before it says that there is none of that name."""
        for refresh in (False, True):
            if refresh:
                yield from self.hello(refresh=True)
            models = yield from self.models()
            for info in models:
                if not name or info.name == name:
                    return info
        names = [m.name for m in models]
        raise ModelNotFound(f"model {name!r} is not served; served: {', '.join(names)}", {"models": names})

    def tokenizer(self, model: str = "") -> Call[TextTokenizer | None]:
        """The model's tokenizer, fetched once per digest; None when `tokenizers` is not installed here."""
        info = yield from self.model(model)
        if info.text is None:
            raise UnsupportedOperation(f"model {info.name!r} takes no text", {"model": info.name})
        if not tokenizing.available():
            return None
        known = self._tokenizers.get(info.name)
        if known is None or known.info != info.text:
            reply = yield from self._ask("tokenizer", info.name)
            known = TextTokenizer(reply.outputs["tokenizer"].raw_strings()[0], info.text)
            self._tokenizers[info.name] = known
        return known

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        normalize: bool | None = None,
        dimensions: int = 0,
        model: str = "",
        timeout_s: float | None = None,
        **options: Any,
    ) -> Call[Vectors]:
        """Embeddings of any number of texts, in requests of at most the daemon's `max_items`."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        for i, text in enumerate(listed):
            if not isinstance(text, str):
                raise InvalidRequest(f"text {i} is {type(text).__name__}, not str", {"item": i})
        if not listed:
            info = yield from self.model(model)
            return np.zeros((0, dimensions or info.dimensions), np.float32)
        step = (yield from self.hello()).limits.max_items
        params = embed_params(normalize, dimensions)
        parts = []
        for start in range(0, len(listed), step):
            reply = yield from self.embed_request(
                listed[start : start + step], model=model, params=params, timeout_s=timeout_s, **options
            )
            raise_item_errors(reply, start)
            parts.append(reply.outputs["embedding"].to_numpy())
        return np.concatenate(parts).astype(np.float32, copy=False)

    def embed_request(
        self,
        texts: list[str],
        *,
        model: str = "",
        params: Params | None = None,
        prompt_name: str = "",
        truncate: bool = True,
        direction: Direction = "right",
        priority: Priority = 1,
        timeout_s: float | None = None,
        traceparent: str = "",
    ) -> Call[Reply]:
        """One request of texts: tokenised here where that is possible, sent as text otherwise."""
        for attempt in (1, 2):
            tokenizer = yield from self.tokenizer(model)
            extra: dict[str, bool | int | float | str] = {}
            digest = ""
            if tokenizer is None:
                inputs = {"text": _utf8(texts)}
                extra = {"truncate": truncate, "truncation_direction": direction, "prompt_name": prompt_name}
            else:
                rows = yield _encoder(tokenizer, texts, prompt_name, truncate, direction)
                inputs, digest = {"input_ids": Tensor.from_rows(rows, "i32")}, tokenizer.info.digest
            try:
                reply = yield from self.request(
                    inputs, model=model, params={**(params or {}), **extra}, priority=priority, timeout_s=timeout_s,
                    digest=digest, traceparent=traceparent,
                )  # fmt: skip
                return reply
            except StaleTokenizer:
                if attempt == 2:
                    raise
                yield from self.hello(refresh=True)
        raise AssertionError("unreachable")

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        params: Params | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
        traceparent: str = "",
    ) -> Call[Reply]:
        """Run any model on Python values."""
        info = yield from self.model(model)
        tensors = to_tensors(info, inputs)
        reply = yield from self.request(
            tensors,
            model=info.name,
            params=params,
            priority=priority,
            timeout_s=timeout_s,
            traceparent=traceparent,
        )
        return reply

    def _ask(self, op: str, model: str = "") -> Call[Reply]:
        return self.request(op=op, model=model, timeout_s=min(self.timeout_s, ASK_TIMEOUT_S))


def _encoder(
    tokenizer: TextTokenizer, texts: list[str], prompt_name: str, truncate: bool, direction: Direction
) -> Callable[[], list[list[int]]]:
    return lambda: tokenizer.encode(texts, prompt_name=prompt_name, truncate=truncate, direction=direction)


def _utf8(texts: list[str]) -> Tensor:
    try:
        return Tensor.from_strings(texts)
    except UnicodeEncodeError:
        raise InvalidRequest("a text holds a lone surrogate, which UTF-8 cannot carry") from None


def embed_params(normalize: bool | None, dimensions: int) -> dict[str, bool | int | float | str]:
    """The parameters of an embedding request that differ from the model's own."""
    params: dict[str, bool | int | float | str] = {}
    if normalize is not None:
        params["normalize"] = normalize
    if dimensions:
        params["dimensions"] = dimensions
    return params


def to_tensors(info: ModelInfo, inputs: Mapping[str, Any]) -> Tensors:
    """Wire tensors of a request's inputs, by what the model declares; raises InvalidRequest naming the input."""
    declared = {i.name: i for i in info.inputs}
    if declared and set(inputs) != set(declared):
        wanted = ", ".join(declared)
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


def from_tensor(tensor: Tensor) -> Value:
    """A Python value of an output: an array when dense, else a list with one entry per item."""
    if tensor.dtype == "utf8":
        return tensor.strings()
    if tensor.dtype == "bytes":
        return tensor.raw_strings()
    return tensor.to_numpy() if tensor.offsets is None else tensor.rows()


def check_size(inputs: Tensors, limits: Limits) -> None:
    """Raise TooLarge, naming the limit, for what the server would drop or refuse."""
    total = 0
    for name, tensor in inputs.items():
        if tensor.items > limits.max_items:
            raise TooLarge(
                f"{name}: {tensor.items} items exceed max_items = {limits.max_items}", {"limit": "max_items"}
            )
        for frame in tensor.frames():
            total += len(frame)
            if len(frame) > limits.max_frame_bytes:
                raise TooLarge(
                    f"{name}: {len(frame)} bytes exceed max_frame_bytes = {limits.max_frame_bytes}",
                    {"limit": "max_frame_bytes"},
                )
    if total > limits.max_request_bytes:
        raise TooLarge(
            f"{total} bytes exceed max_request_bytes = {limits.max_request_bytes}",
            {"limit": "max_request_bytes"},
        )


def raise_item_errors(reply: Reply, first: int = 0) -> None:
    """Raise the first per-item error of a reply whose row 0 is item `first` of the caller."""
    if reply.header.item_errors:
        failed = reply.header.item_errors[0]
        raise from_wire(
            failed.code, f"item {first + failed.item}: {failed.message}", {"item": first + failed.item}
        )
