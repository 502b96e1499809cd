"""A service with a fake engine, a clock and a text pool that a test turns by hand."""

from __future__ import annotations

from collections.abc import Container, Mapping
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
from daemon_fakes import Clock, FakeLink, engine_reply

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.daemon.service import Service
from gpu_server.daemon.text import TextPool
from gpu_server.errors import RemoteError
from gpu_server.testing import byte_tokenizer
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire import (
    ItemError,
    Limits,
    ReplyHeader,
    RequestHeader,
    Tensor,
    Tensors,
    decode_reply,
    document,
    encode_request,
)
from gpu_server.wire.documents import InputInfo, ModelInfo, TextInfo

NUMBERS = ModelInfo(
    name="numbers", version="v1", inputs=(InputInfo("x", "i64"),), max_batch_tokens=64, max_batch_items=8
)
TEXT = ModelInfo(
    name="text",
    inputs=(InputInfo("input_ids", "i32", (-1,)),),
    cost="input_ids",
    text=TextInfo(digest="d" * 64, max_length=16, vocab_size=258),
)


class HandPool:
    """Tokenises when `turn` is called, the oldest first."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.tokenizers: dict[str, TextTokenizer] = {}

    def add(self, model: str, info: TextInfo, tokenizer_json: bytes) -> None:
        self.tokenizers[model] = TextTokenizer(tokenizer_json, info)

    def keep(self, models: Container[str]) -> None:
        self.tokenizers = {name: known for name, known in self.tokenizers.items() if name in models}

    def submit(self, model: str, texts: Tensors, options: dict[str, Any], finished: Any) -> Future[None]:
        future: Future[None] = Future()
        self.waiting.append((model, texts, options, finished, future))
        return future

    def turn(self, error: RemoteError | None = None) -> None:
        """Tokenise the oldest text, even one that is cancelled: its turn may have come first."""
        model, texts, options, finished, _ = self.waiting.pop(0)
        if error is None:
            finished(self.tokenizers[model].inputs(texts["text"].strings(), **options))
        else:
            finished(error)

    def cancelled(self) -> list[bool]:
        """Which of the waiting texts need not be tokenised."""
        return [future.cancelled() for *_, future in self.waiting]


class World:
    """A service; `replies` holds what it sent, as (peer, header, outputs)."""

    def __init__(self, *, ready: bool = True, max_early_bytes: int = 0) -> None:
        self.clock = Clock()
        self.scheduler = Scheduler(self.clock, max_items=50, max_bytes=10_000)
        self.metrics = Metrics()
        self.pool = HandPool()
        self.replies: list[tuple[bytes, ReplyHeader, Tensors]] = []
        self.service = Service(
            self.scheduler,
            self.metrics,
            Limits(max_items=20, max_text_bytes=100, max_request_bytes=200),
            self.clock,
            lambda peer, frames: self.replies.append((peer, *decode_reply(frames))),
            lambda peer, header, inputs: document("document", header.op),
            cast(TextPool, self.pool),
            default_deadline_s=30.0,
            batches_in_flight=2,
            max_answer_bytes=1000,
            max_early_bytes=max_early_bytes,
        )
        self.link = FakeLink(NUMBERS, TEXT)
        if ready:
            self.new_engine()

    def new_engine(self, generation: int = 0) -> None:
        """A loaded engine in place of the last one."""
        self.link = FakeLink(NUMBERS, TEXT)
        self.link.generation = generation
        self.link.tokenizers["text"] = byte_tokenizer()
        self.service.engine_ready(cast(EngineLink, self.link))

    def lose_engine(self) -> None:
        self.service.engine_lost(cast(EngineLink, self.link))

    def ask(
        self, *, id: bytes = b"1", op: str = "infer", peer: bytes = b"p", inputs: Tensors | None = None, **header: Any  # noqa: A002
    ) -> None:  # fmt: skip
        made = RequestHeader(v=1, id=id, op=op, **header)
        self.service.handle(peer, encode_request(made, inputs))

    def numbers(self, *values: int, **header: Any) -> None:
        """An infer of the model `numbers`, then a dispatch."""
        self.ask(inputs={"x": Tensor.from_numpy(np.array(values))}, **header)
        self.service.dispatch()

    def text(self, *texts: str, **header: Any) -> None:
        self.ask(inputs={"text": Tensor.from_strings(texts)}, model="text", **header)

    def answer(
        self, item_errors: Mapping[int, str] | None = None, outputs: Tensors | None = None, **header: Any
    ) -> None:
        """The engine answers its oldest batch with each number doubled, then gets the next."""
        batch = self.link.pop()
        if outputs is None and "error" not in header:
            outputs = {"y": Tensor.from_numpy(self.link.inputs[batch.id]["x"].to_numpy() * 2)}
        errors = tuple(ItemError(row, "model_failed", text) for row, text in (item_errors or {}).items())
        self.service.batch_done(batch, engine_reply(item_errors=errors, **header), outputs or {})
        self.service.dispatch()

    def outcomes(self) -> list[tuple[bytes, Any]]:
        """Each reply's id with its error code, or with the numbers of its answer (none: [])."""
        nothing = Tensor("i64", (0,), b"")
        return [
            (header.id, header.error.code if header.error else outputs.get("y", nothing).to_numpy().tolist())
            for _, header, outputs in self.replies
        ]

    def assert_nothing_is_kept(self) -> None:
        scheduler = self.scheduler
        assert (self.service.open_requests, scheduler.requests, scheduler.items, scheduler.bytes) == (
            0,
            0,
            0,
            0,
        )
