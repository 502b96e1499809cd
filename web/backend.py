"""The daemon as the routes see it: the one client of this process, model names, and a deadline over every step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flask import Flask, current_app

from gpu_server.calls import Params, Priority, Vectors, embed_params, raise_item_errors
from gpu_server.client import Client
from gpu_server.connection import Reply
from gpu_server.deadline import Deadline
from gpu_server.errors import (
    InvalidRequest,
    MissingDependency,
    StaleTokenizer,
    UnsupportedOperation,
)
from gpu_server.tokenizing import Direction
from gpu_server.wire import Limits, Tensor, Timing
from gpu_server.wire.documents import ModelInfo, Status
from web.inputs import Item, token_ids
from web.settings import Settings

ASK_TIMEOUT_S = 1.5


@dataclass(slots=True)
class EmbedJob:
    """What to embed, and how; `model` "" means the first embedding model."""

    items: list[Item]
    field: str
    model: str = ""
    normalize: bool = True
    dimensions: int = 0
    prompt_name: str = ""
    truncate: bool = True
    direction: Direction = "right"
    traceparent: str = ""


@dataclass(slots=True)
class Embedded:
    """Vectors, float32 `[items, dimensions]`, with what it took to make them (times in seconds)."""

    vectors: Vectors
    model: ModelInfo
    characters: int
    tokens: int
    tokenize_s: float
    queue_s: float
    compute_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Shared:
    """What the requests of one app have in common."""

    client: Client
    settings: Settings


class Backend:
    """The calls of one HTTP request; all together end by its deadline, each with a result or a RemoteError."""

    def __init__(self, shared: Shared, deadline: Deadline) -> None:
        self.client = shared.client
        self.settings = shared.settings
        self.deadline = deadline

    def status(self) -> Status:
        """The daemon's state, asked beside the inference queue."""
        return self.client.status(timeout_s=self.deadline.left(ASK_TIMEOUT_S))

    def metrics(self) -> str:
        """The daemon's metrics as Prometheus text."""
        return self.client.metrics(timeout_s=self.deadline.left(ASK_TIMEOUT_S))

    def limits(self) -> Limits:
        """What the daemon takes in one request."""
        return self.client.hello(timeout_s=self.deadline.left()).limits

    def models(self) -> list[ModelInfo]:
        """The served models, the default first. Raises ModelLoading before any is ready."""
        return self.client.models(timeout_s=self.deadline.left())

    def model(self, name: str) -> ModelInfo:
        """The served model of that name, or whose name ends in it after a «/»; raises ModelNotFound."""
        return self.client.model(name, timeout_s=self.deadline.left())

    def embedding_model(self, name: str = "") -> ModelInfo:
        """The embedding model of that name, "" for the first. Raises UnsupportedOperation where it is none."""
        infos = [self.model(name)] if name else self.models()
        for info in infos:
            if info.kind == "embedding":
                return info
        raise UnsupportedOperation(f"model {infos[0].name!r} is not an embedding model")

    def embed(self, job: EmbedJob) -> Embedded:
        """Embed a job's items as one request; an item that fails alone fails the job, naming the item."""
        started = time.monotonic()
        info = self.embedding_model(job.model)
        self._check(job, info)
        try:
            return self._embed(job, info, started)
        except StaleTokenizer:
            self.client.hello(refresh=True, timeout_s=self.deadline.left())
            return self._embed(job, self.model(info.name), started)

    def _embed(self, job: EmbedJob, info: ModelInfo, started: float) -> Embedded:
        tokenizer = self.client.tokenizer(info.name, timeout_s=self.deadline.left())
        if tokenizer is None:
            raise MissingDependency("tokenising needs the package tokenizers: pip install tokenizers")
        begun = time.monotonic()
        rows, characters = token_ids(tokenizer, job.items, job.prompt_name, job.truncate, job.direction)
        tokenize_s = time.monotonic() - begun
        reply = self.client.request(
            {"input_ids": Tensor.from_rows(rows, "i32")},
            model=info.name,
            params=embed_params(job.normalize, job.dimensions),
            digest=tokenizer.info.digest,
            timeout_s=self.deadline.left(),
            traceparent=job.traceparent,
        )
        raise_item_errors(reply)
        timing = reply.header.timing or Timing()
        return Embedded(
            vectors=_vectors(reply),
            model=info,
            characters=characters,
            tokens=sum(map(len, rows)),
            tokenize_s=tokenize_s,
            queue_s=timing.queue_us / 1e6,
            compute_s=timing.compute_us / 1e6,
            total_s=time.monotonic() - started,
        )

    def infer(
        self,
        info: ModelInfo,
        inputs: Mapping[str, Any],
        params: Params,
        priority: Priority,
        traceparent: str,
    ) -> Reply:
        """Run any model on Python values."""
        return self.client.infer_request(
            info.name,
            dict(inputs),
            params=params,
            priority=priority,
            timeout_s=self.deadline.left(),
            traceparent=traceparent,
        )

    def _check(self, job: EmbedJob, info: ModelInfo) -> None:
        limit = self.limits().max_items
        if len(job.items) > limit:
            raise InvalidRequest(
                f"{job.field}: {len(job.items)} items exceed max_items = {limit}",
                {"field": job.field, "limit": "max_items"},
            )
        if info.dimensions and job.dimensions > info.dimensions:
            raise InvalidRequest(
                f"dimensions: {job.dimensions} exceeds the {info.dimensions} of model {info.name!r}",
                {"field": "dimensions"},
            )


def register(app: Flask, client: Client, settings: Settings) -> None:
    """Give `app` its client and settings."""
    app.extensions["gpu_server"] = Shared(client, settings)


def backend(timeout_s: float | None = None) -> Backend:
    """A backend for the current HTTP request, which has `settings.timeout_s` from now, or `timeout_s` if that is less."""
    shared = _shared()
    most = shared.settings.timeout_s
    return Backend(shared, Deadline.after(most if timeout_s is None else min(timeout_s, most)))


def get_client() -> Client:
    """The client of the current app, for routes of your own."""
    return _shared().client


def _shared() -> Shared:
    found: Shared = current_app.extensions["gpu_server"]
    return found


def _vectors(reply: Reply) -> Vectors:
    vectors: Vectors = np.ascontiguousarray(reply.outputs["embedding"].to_numpy(), np.float32)
    return vectors
