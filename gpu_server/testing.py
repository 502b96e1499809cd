"""`FakeServer`: a daemon for tests, without torch or a GPU, in a thread of the test's own process."""

from __future__ import annotations

import json
import os
import socket as sockets
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import zmq

from gpu_server._version import __version__
from gpu_server.errors import (
    InternalError,
    ModelLoading,
    ModelNotFound,
    ProtocolError,
    RemoteError,
    ShuttingDown,
    UnsupportedOperation,
)
from gpu_server.tokenizing import digest
from gpu_server.wire import (
    VERSION,
    Buffer,
    Limits,
    ReplyHeader,
    RequestHeader,
    Tensor,
    Tensors,
    Timing,
    decode_request,
    document,
    encode_reply,
    error_reply,
)
from gpu_server.wire.convert import as_tensor
from gpu_server.wire.documents import (
    Hello,
    InputInfo,
    ModelInfo,
    QueueStatus,
    State,
    Status,
    TextInfo,
    to_json,
)
from gpu_server.wire.monitoring import History
from gpu_server.wire.monitoring import to_json as monitoring_json

Handler = Callable[[Tensors, Mapping[str, Any]], Mapping[str, Any]]
LOADING = frozenset[State]({"starting", "loading"})
REFUSING = frozenset[State]({"draining", "stopping", "failed"})


@dataclass
class FakeModel:
    """A model of a FakeServer: its facts, the function that answers for it, and a tokenizer.json if it takes text."""

    info: ModelInfo
    handler: Handler
    tokenizer: bytes = b""


def echo_model(name: str = "echo") -> FakeModel:
    """A model that returns its inputs as they are: shows that no answer reaches the wrong caller."""
    return FakeModel(ModelInfo(name=name, version="1"), lambda inputs, params: dict(inputs))


def embedding_model(name: str = "fake/embedding", dimensions: int = 8, max_length: int = 64) -> FakeModel:
    """A text model whose vectors depend on the token ids alone: the same text gives the same unit vector everywhere."""
    info = _text_info(
        name, kind="embedding", max_length=max_length, dimensions=dimensions, pooling="mean", normalize=True,
        outputs=("embedding", "token_embeddings"),
    )  # fmt: skip

    def embed(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        if params.get("output") == "token_embeddings":
            tokens = [
                np.stack([fake_vector([i], dimensions) for i in row]) for row in inputs["input_ids"].rows()
            ]
            return {"token_embeddings": Tensor.from_rows(tokens, "f32")}
        rows = [fake_vector(row.tolist(), dimensions) for row in inputs["input_ids"].rows()]
        matrix = np.stack(rows)[:, : params.get("dimensions") or dimensions]
        if params.get("normalize", True):
            matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
        return {"embedding": matrix}

    return FakeModel(info, embed, byte_tokenizer())


def _text_info(name: str, *, max_length: int = 64, **facts: Any) -> ModelInfo:
    text = TextInfo(
        digest=digest(byte_tokenizer()), max_length=max_length, vocab_size=258, prompts={"query": "query: "},
        hidden_size=facts.get("dimensions", 0),
    )  # fmt: skip
    known: dict[str, Any] = {"inputs": (InputInfo("input_ids", "i32", (-1,)),), **facts}
    return ModelInfo(
        name=name,
        version="1",
        source=name,
        device="cpu",
        dtype="float32",
        cost="input_ids",
        text=text,
        **known,
    )


def scores_model(name: str = "fake/reranker", labels: tuple[str, ...] = ("LABEL_0",)) -> FakeModel:
    """A reranker, or with more than one label a classifier; logits depend on the token ids and types alone."""
    typed = (InputInfo("input_ids", "i32", (-1,)), InputInfo("token_type_ids", "i32", (-1,)))
    info = _text_info(
        name, kind="reranker" if len(labels) == 1 else "classifier", inputs=typed, labels=labels,
        activation="sigmoid" if len(labels) == 1 else "softmax",
    )  # fmt: skip

    def score(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        rows = zip(inputs["input_ids"].rows(), inputs["token_type_ids"].rows(), strict=True)
        return {"logits": np.stack([fake_vector([*ids, *types], len(labels)) for ids, types in rows])}

    return FakeModel(info, score, byte_tokenizer())


def sparse_model(name: str = "fake/sparse") -> FakeModel:
    """A sparse model: each token id that occurs, with the number of times it does."""

    def count(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        found = [np.unique(row, return_counts=True) for row in inputs["input_ids"].rows()]
        values = [counts.astype(np.float32) for _, counts in found]
        return {
            "sparse_indices": Tensor.from_rows([ids for ids, _ in found]),
            "sparse_values": Tensor.from_rows(values, "f32"),
        }

    return FakeModel(_text_info(name, kind="sparse", dimensions=258), count, byte_tokenizer())


def token_classifier_model(name: str = "fake/tokens", labels: tuple[str, ...] = ("even", "odd")) -> FakeModel:
    """A token classifier that is sure of the label with the number `id % len(labels)`."""

    def label(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        sure = 10 * np.eye(len(labels), dtype=np.float32)
        return {
            "logits": Tensor.from_rows([sure[row % len(labels)] for row in inputs["input_ids"].rows()], "f32")
        }

    info = _text_info(name, kind="token_classifier", labels=labels, activation="softmax")
    return FakeModel(info, label, byte_tokenizer())


def fake_vector(ids: list[int], dimensions: int = 8) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What `embedding_model` answers for token ids, before it normalises: float32 `[dimensions]`."""
    return np.random.default_rng(ids).standard_normal(dimensions).astype(np.float32)


def byte_tokenizer() -> bytes:
    """A tokenizer.json with one token per UTF-8 byte between [CLS] (256) and [SEP] (257); decoding gives the text back."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    vocab = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    special = {"[CLS]": 256, "[SEP]": 257}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    parts = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    parts.append({"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level, "decoder": level,
        "added_tokens": [{"id": i, "content": t, **flags} for t, i in special.items()],
        "post_processor": {
            "type": "TemplateProcessing", "single": parts, "pair": [*parts, *second],
            "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in special.items()},
        },
        "model": {"type": "BPE", "vocab": vocab | special, "merges": [], "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False},
    }).encode()  # fmt: skip


class FakeServer:
    """Answers the protocol on a real ipc socket; use as a context manager.

    models: default one `embedding_model()` and one `echo_model()`. A handler that raises a RemoteError is answered with it,
    one that raises anything else with an InternalError that names it.
    state: what `hello` and `status` report; assign to it to play a server that loads or drains, which answers a request with
    ModelLoading or ShuttingDown. `requests` counts by op.
    """

    def __init__(self, *models: FakeModel, endpoint: str = "", limits: Limits | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gpu-server-fake-")
        self.endpoint = endpoint or f"ipc://{self._folder.name}/fake.sock"
        self.models = {m.info.name: m for m in models or (embedding_model(), echo_model())}
        self.limits = limits or Limits()
        self.state: State = "ready"
        self.requests: dict[str, int] = {}
        self._done: deque[list[Buffer]] = deque()
        self._wake_read, self._wake_write = sockets.socketpair()
        self._wake_read.setblocking(False)
        self._stopping = False
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake-server", daemon=True)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        if not self._bound.wait(5):
            raise InternalError(f"the fake server could not bind {self.endpoint}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        # An answer may have woken the thread just now, which then has ended already.
        with suppress(OSError):
            self._wake_write.send(b"\0")
        self._thread.join(5)
        self._folder.cleanup()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket, ThreadPoolExecutor(16) as pool:
            socket.linger = 0
            socket.bind(self.endpoint)
            self._bound.set()
            poller = zmq.Poller()
            poller.register(socket, zmq.POLLIN)
            poller.register(self._wake_read, zmq.POLLIN)
            while not self._stopping:
                poller.poll()
                with suppress(BlockingIOError):
                    self._wake_read.recv(4096)
                self._receive(socket, pool)
                while self._done:
                    socket.send_multipart(self._done.popleft())
        self._wake_read.close()
        self._wake_write.close()

    def _receive(self, socket: zmq.Socket[bytes], pool: ThreadPoolExecutor) -> None:
        while True:
            try:
                peer, *frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                header, inputs = decode_request(frames, self.limits)
            except ProtocolError as error:
                self._done.append(
                    [peer, *error_reply(error.request_id, error.code, str(error), details=error.details)]
                )
                continue
            self.requests[header.op] = self.requests.get(header.op, 0) + 1
            if header.op == "infer":
                future = pool.submit(self._reply, header, inputs)
                future.add_done_callback(partial(self._finish, peer, header.id))
            else:
                self._done.append([peer, *self._reply(header, inputs)])

    def _finish(self, peer: bytes, request_id: bytes, future: Future[list[Buffer]]) -> None:
        error = future.exception()
        frames = (
            error_reply(request_id, InternalError.code, f"{type(error).__name__}: {error}")
            if error
            else future.result()
        )
        self._done.append([peer, *frames])
        with suppress(OSError):
            self._wake_write.send(b"\0")

    def _reply(self, header: RequestHeader, inputs: Tensors) -> list[Buffer]:
        try:
            outputs, info = self._answer(header, inputs)
        except RemoteError as error:
            return error_reply(header.id, error.code, error.message, error.retryable, error.details)
        timing = Timing(batch_items=next(iter(inputs.values())).items) if inputs else Timing()
        reply = ReplyHeader(v=VERSION, id=header.id, timing=timing)
        if info is not None:
            reply.model, reply.version = info.name, info.version
        return encode_reply(reply, outputs)

    def _answer(self, header: RequestHeader, inputs: Tensors) -> tuple[Tensors, ModelInfo | None]:
        infos = () if self.state in LOADING else tuple(m.info for m in self.models.values())
        if header.op == "hello":
            hello = Hello(
                version=__version__,
                state=self.state,
                limits=self.limits,
                default_deadline_ms=30_000,
                models=infos,
            )
            return document("document", to_json(hello).decode()), None
        if header.op == "status":
            status = Status(
                version=__version__, pid=os.getpid(), endpoint=self.endpoint, state=self.state, models=infos,
                queue=QueueStatus(),
            )  # fmt: skip
            return document("document", to_json(status).decode()), None
        if header.op == "history":
            history = History(state=self.state, every_s=1.0, points=())
            return document("document", monitoring_json(history).decode()), None
        if header.op == "metrics":
            return document(
                "metrics", "# HELP gpu_server_fake 1\n# TYPE gpu_server_fake gauge\ngpu_server_fake 1\n"
            ), None
        if header.op in ("cancel", "report"):
            return {}, None
        if header.op in ("infer", "tokenizer"):
            model = self._model(header)
            if header.op == "infer":
                given = model.handler(inputs, header.params)
                outputs = {k: v if isinstance(v, Tensor) else as_tensor(v) for k, v in given.items()}
                return outputs, model.info
            if model.tokenizer:
                return document("tokenizer", model.tokenizer), model.info
        raise UnsupportedOperation(f"operation {header.op!r} is not offered")

    def _model(self, header: RequestHeader) -> FakeModel:
        """The model that a request names; raises what its op is refused with in this state."""
        if header.op == "infer" and self.state in REFUSING:
            raise ShuttingDown("the server takes no new requests: it drains or stops")
        if self.state in LOADING:
            raise ModelLoading(f"the models are still loading ({self.state})", {"phase": self.state})
        model = self.models.get(header.model) if header.model else next(iter(self.models.values()))
        if model is None:
            raise ModelNotFound(f"model {header.model!r} is not served", {"models": list(self.models)})
        return model
