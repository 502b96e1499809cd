"""`AsyncClient`: the calls of `Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
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


class AsyncClient:
    """A client for asyncio; a task that is cancelled cancels its request in the daemon.

    As with `Client`, make one per process and share it; its connection ends with `close()` or when nothing holds it.
    """

    def __init__(
        self, endpoint: str | None = None, *, timeout_s: float = 30.0, settings: ClientConfig | None = None
    ) -> None:
        self._calls = TextCalls(endpoint, timeout_s, settings)

    async def embed(
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
        """As `Client.embed`; tokenising runs in a thread."""
        return await self._run(
            self._calls.embed(
                texts, model=model, normalize=normalize, dimensions=dimensions, prompt_name=prompt_name,
                truncate=truncate, direction=direction, priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    async def embed_tokens(
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
        """As `Client.embed_tokens`."""
        return await self._run(
            self._calls.embed_tokens(
                texts,
                model=model, prompt_name=prompt_name, truncate=truncate, direction=direction,
                priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    async def embed_sparse(
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
        """As `Client.embed_sparse`."""
        return await self._run(
            self._calls.embed_sparse(
                texts,
                model=model, prompt_name=prompt_name, truncate=truncate, direction=direction,
                priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    async def rerank(
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
        """As `Client.rerank`."""
        return await self._run(
            self._calls.rerank(
                query, documents,
                model=model, raw_scores=raw_scores, truncate=truncate, direction=direction,
                priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    async def classify(
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
        """As `Client.classify`."""
        return await self._run(
            self._calls.classify(
                texts,
                model=model, raw_scores=raw_scores, truncate=truncate, direction=direction,
                priority=priority, timeout_s=timeout_s,
            )
        )  # fmt: skip

    async def classify_tokens(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        truncate: bool = True,
        direction: Direction | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
    ) -> list[list[TokenLabel]]:
        """As `Client.classify_tokens`."""
        return await self._run(
            self._calls.classify_tokens(
                texts,
                model=model, truncate=truncate, direction=direction, priority=priority,
                timeout_s=timeout_s,
            )
        )  # fmt: skip

    async def infer(
        self,
        model: str = "",
        /,
        *,
        params: Params | None = None,
        priority: Priority = 1,
        timeout_s: float | None = None,
        **inputs: Any,
    ) -> dict[str, Value]:
        """As `Client.infer`."""
        call = self._calls.infer(model, inputs, params=params, priority=priority, timeout_s=timeout_s)
        reply = await self._run(call)
        raise_item_errors(reply)
        return {name: from_tensor(tensor) for name, tensor in reply.outputs.items()}

    async def text_request(self, texts: Sequence[Text], **options: Any) -> Reply:
        """As `Client.text_request`."""
        return await self._run(self._calls.text_request(texts, **options))

    async def infer_request(self, model: str, inputs: dict[str, Any], **options: Any) -> Reply:
        """As `Client.infer_request`."""
        return await self._run(self._calls.infer(model, inputs, **options))

    async def request(self, inputs: Tensors | None = None, **options: Any) -> Reply:
        """As `Client.request`."""
        return await self._run(self._calls.request(inputs, **options))

    async def requests(self, parts: Iterable[Tensors], **options: Any) -> list[Reply]:
        """As `Client.requests`."""
        return await self._run(self._calls.requests(parts, **options))

    async def hello(self, *, refresh: bool = False, timeout_s: float | None = None) -> Hello:
        """As `Client.hello`."""
        return await self._run(self._calls.hello(refresh, timeout_s))

    async def status(self, *, timeout_s: float | None = None) -> Status:
        """As `Client.status`."""
        return await self._run(self._calls.status(timeout_s))

    async def metrics(self, *, timeout_s: float | None = None) -> str:
        """As `Client.metrics`."""
        return await self._run(self._calls.metrics(timeout_s))

    async def history(self, since: int = 0, *, timeout_s: float | None = None) -> History:
        """As `Client.history`."""
        return await self._run(self._calls.history(since, timeout_s))

    async def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """As `Client.models`."""
        return await self._run(self._calls.models(timeout_s))

    async def model(self, name: str = "", *, timeout_s: float | None = None) -> ModelInfo:
        """As `Client.model`."""
        return await self._run(self._calls.model(name, timeout_s))

    async def tokenizer(self, model: str = "", *, timeout_s: float | None = None) -> TextTokenizer | None:
        """As `Client.tokenizer`."""
        return await self._run(self._calls.tokenizer(model, timeout_s))

    def close(self) -> None:
        """Close this process's connection without waiting for its thread, which may be looking a host up."""
        self._calls.connections.abandon()

    async def _run(self, call: Call[T]) -> T:
        """Take a call's steps on the event loop: futures are awaited, functions run in a thread."""
        step: Any = None
        try:
            step = next(call)
            while True:
                try:
                    value = await (
                        asyncio.wrap_future(step) if isinstance(step, Future) else asyncio.to_thread(step)
                    )
                except Exception as error:  # noqa: BLE001 - handed to the call, which knows what to do with it
                    step = call.throw(error)
                else:
                    step = call.send(value)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            withdraw(call, step)
            del step

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._calls.connections.close)
