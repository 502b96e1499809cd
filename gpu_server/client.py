"""`Client`: how web workers and scripts call the daemon; safe across forks and threads, never waits past a deadline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from gpu_server.calls import (
    Call,
    Params,
    Priority,
    Value,
    Vectors,
    from_tensor,
    raise_item_errors,
    withdraw,
)
from gpu_server.config import ClientConfig
from gpu_server.connection import Reply
from gpu_server.scores import Scores
from gpu_server.text_calls import SparseVector, TextCalls, TokenLabel
from gpu_server.tokenizing import Direction, Text, TextTokenizer
from gpu_server.wire import Tensors
from gpu_server.wire.documents import Hello, ModelInfo, Status
from gpu_server.wire.monitoring import History

T = TypeVar("T")
Wait = Callable[[Future[Reply]], Reply]


class Client:
    """A client of one daemon.

    Make it anywhere, before or after a fork: nothing is connected until the first call, and each process gets a
    socket of its own, shared by its threads. Make one per process and share it: each has a thread and a connection, which
    end with `close()` or when nothing holds the client any more. Every call ends within its time-out, however many requests
    it takes, with an answer or a `RemoteError` of gpu_server.errors. One that is pickled is made anew where it is read.

    endpoint: `ipc:///path` or `tcp://host:port`; None means $GPU_SERVER_ENDPOINT or the default place.
    timeout_s: seconds a call may take when it names no other. settings: keys for tcp; None reads the environment.
    Raises ConfigError on an endpoint, a key or a time-out that cannot be used.
    """

    def __init__(
        self, endpoint: str | None = None, *, timeout_s: float = 30.0, settings: ClientConfig | None = None
    ) -> None:
        self._calls = TextCalls(endpoint, timeout_s, settings)

    @property
    def endpoint(self) -> str:
        """Where this client connects to."""
        return self._calls.endpoint

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        normalize: bool | None = None,
        dimensions: int = 0,
        prompt_name: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
    ) -> Vectors:
        """Embeddings of any number of texts as float32 `[texts, dimensions]`; a single str gives one row.

        normalize, direction: None keeps the model's own setting. dimensions: 0 does, which is all but for models saved with
        fewer (Matryoshka models allow any). truncate: cut over-long texts on the side of `direction`; off, they are refused.
        timeout_s: for all texts together.
        Raises InvalidRequest on bad texts.
        """
        return self._run(
            self._calls.embed(
                texts, model=model, normalize=normalize, dimensions=dimensions, prompt_name=prompt_name,
                truncate=truncate, direction=direction, priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    def embed_tokens(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        prompt_name: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
    ) -> list[Vectors]:
        """Embeddings of every token of each text, special tokens included, as float32 `[tokens, hidden size]` a text.

        Options as `embed`.
        """
        return self._run(
            self._calls.embed_tokens(
                texts,
                model=model, prompt_name=prompt_name, truncate=truncate, direction=direction,
                priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    def embed_sparse(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        prompt_name: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
    ) -> list[SparseVector]:
        """Sparse vectors of a SPLADE model, or of BGE-M3: what is not 0, by ascending index.

        Options as `embed`.
        """
        return self._run(
            self._calls.embed_sparse(
                texts,
                model=model, prompt_name=prompt_name, truncate=truncate, direction=direction,
                priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        model: str = "",
        raw_scores: bool = False,
        truncate: bool = True,
        direction: Direction | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
    ) -> Scores:
        """How well each document answers the query: float32 `[documents]`, in the order given; the higher, the better.

        raw_scores: the model's logits, without its activation. truncate: cut pairs that are too long, the longer text
        first; off, they are refused. Other options as `embed`. Raises UnsupportedOperation if the model is no reranker.
        """
        return self._run(
            self._calls.rerank(
                query, documents,
                model=model, raw_scores=raw_scores, truncate=truncate, direction=direction,
                priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    def classify(
        self,
        texts: Text | Sequence[Text],
        *,
        model: str = "",
        raw_scores: bool = False,
        truncate: bool = True,
        direction: Direction | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
    ) -> Scores:
        """Scores of each label of the model for each text, or each pair of texts: float32 `[texts, labels]`.

        `model().labels` names them. Options as `rerank`.
        """
        return self._run(
            self._calls.classify(
                texts,
                model=model, raw_scores=raw_scores, truncate=truncate, direction=direction,
                priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    def classify_tokens(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
    ) -> list[list[TokenLabel]]:
        """Each token of each text with its label, as named-entity recognisers give them; special tokens are left out.

        Options as `embed`. Raises MissingDependency if `tokenizers` is not installed here.
        """
        return self._run(
            self._calls.classify_tokens(
                texts,
                model=model, truncate=truncate, direction=direction, priority=priority,
                timeout_s=timeout_s,
            )
        )  # fmt: skip

    def infer(
        self,
        model: str = "",
        /,
        *,
        params: Params | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
        **inputs: Any,
    ) -> dict[str, Value]:
        """Run any model: each keyword is one input, a list or array with one entry per item.

        Returns each output by name: an array `[items, …]`, or a list per item where items differ in length or are strings;
        arrays are the caller's to change.
        Raises InvalidRequest, naming the input, when one does not fit what the model declares.
        """
        reply = self._run(
            self._calls.infer(model, inputs, params=params, priority=priority, timeout_s=timeout_s)
        )
        raise_item_errors(reply)
        return {name: from_tensor(tensor) for name, tensor in reply.outputs.items()}

    def text_request(self, texts: Sequence[Text], **options: Any) -> Reply:
        """One request of texts or pairs with its reply's header (timings, per-item errors).

        options: as `TextCalls.text_requests`. Raises TooLarge if they do not fit one.
        """
        return self._run(self._calls.text_request(texts, **options))

    def infer_request(self, model: str, inputs: dict[str, Any], **options: Any) -> Reply:
        """One request of Python values with its reply's header; options as `Calls.infer`."""
        return self._run(self._calls.infer(model, inputs, **options))

    def request(self, inputs: Tensors | None = None, *, wait: Wait = Future.result, **options: Any) -> Reply:
        """One request as the protocol has it; options as `Calls.request`.

        wait: waits for a future and returns its result; it may give up, by cancelling the future and raising.
        """
        return self._run(self._calls.request(inputs, **options), wait)

    def requests(
        self, parts: Iterable[Tensors], *, wait: Wait = Future.result, **options: Any
    ) -> list[Reply]:
        """Several requests, a few at a time, by one deadline; options as `Calls.requests`, `wait` as `request` has it."""
        return self._run(self._calls.requests(parts, **options), wait)

    def hello(self, *, refresh: bool = False, timeout_s: float | None = None) -> Hello:
        """Versions, limits and models of the daemon; kept until the connection changes or `refresh` asks anew."""
        return self._run(self._calls.hello(refresh, timeout_s))

    def status(self, *, timeout_s: float | None = None) -> Status:
        """The daemon's state, load progress, engines, models and queue; answered while models load too."""
        return self._run(self._calls.status(timeout_s))

    def metrics(self, *, timeout_s: float | None = None) -> str:
        """The daemon's metrics in Prometheus text format."""
        return self._run(self._calls.metrics(timeout_s))

    def history(self, since: int = 0, *, timeout_s: float | None = None) -> History:
        """A point for each of the last 300 seconds, or of those after point number `since`."""
        return self._run(self._calls.history(since, timeout_s))

    def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """The models that are served; the first is the default. Raises ModelLoading before any is ready."""
        return self._run(self._calls.models(timeout_s))

    def model(self, name: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """Facts of one model, "" for the default. Raises ModelNotFound naming those that are served."""
        return self._run(self._calls.model(name, timeout_s))

    def tokenizer(self, model: str = "", *, timeout_s: float | None = None) -> TextTokenizer | None:
        """The model's tokenizer, fetched once per digest; None when `tokenizers` is not installed here.

        Raises UnsupportedOperation if the model takes no text.
        """
        return self._run(self._calls.tokenizer(model, timeout_s))

    def close(self) -> None:
        """Close this process's connection; the next call opens a new one."""
        self._calls.connections.close()

    def _run(self, call: Call[T], wait: Wait = Future.result) -> T:
        """Take a call's steps in this thread, waiting for each reply; interrupted, it cancels what it has asked for."""
        step: Any = None
        try:
            step = next(call)
            while True:
                try:
                    value = wait(step) if isinstance(step, Future) else step()
                except Exception as error:  # noqa: BLE001 - handed to the call, which knows what to do with it
                    step = call.throw(error)
                else:
                    step = call.send(value)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            withdraw(call, step)
            # It holds the error that it ended with, which holds this frame, and that everything the call was given.
            del step

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
