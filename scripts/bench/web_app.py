"""Two apps over an engine that answers at once: `ours`, and `plain`, the same route written as one would in Flask."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask, jsonify, request

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpu_server.client import Client
from gpu_server.connection import Reply
from gpu_server.testing import embedding_model
from gpu_server.wire import VERSION, Limits, ReplyHeader, Tensor, document
from gpu_server.wire.documents import Hello, to_json
from web import create_app
from web.settings import Settings

DIMENSIONS = 384
MODEL = embedding_model(dimensions=DIMENSIONS, max_length=512)
VECTORS = np.random.default_rng(0).standard_normal((4096, DIMENSIONS), np.float32)


class InstantConnection:
    """In place of the client's connections: every request is answered in the call that makes it."""

    serial = generation = 0

    def __init__(self) -> None:
        self.loading = threading.Lock()

    def get(self) -> InstantConnection:
        return self

    def abandon(self) -> None:
        pass

    def submit(self, header: Any, inputs: Any, timeout_s: float) -> Future[Reply]:
        if header.op == "hello":
            hello = Hello(
                version="0", state="ready", limits=Limits(), default_deadline_ms=1, models=(MODEL.info,)
            )
            outputs = document("document", to_json(hello).decode())
        elif header.op == "tokenizer":
            outputs = document("tokenizer", MODEL.tokenizer)
        elif header.op == "infer":
            outputs = {"embedding": Tensor.from_numpy(VECTORS[: inputs["input_ids"].items])}
        else:
            outputs = {}
        future: Future[Reply] = Future()
        future.set_result(Reply(ReplyHeader(v=VERSION, id=b"1"), outputs))
        return future


def instant_client() -> Client:
    client = Client("ipc:///nonexistent")
    client._calls.connections = InstantConnection()  # type: ignore[assignment]
    return client


def plain() -> Flask:
    app = Flask("plain")
    client = instant_client()

    @app.post("/embed")
    def embed() -> Any:
        inputs = request.get_json()["inputs"]
        texts = [inputs] if isinstance(inputs, str) else inputs
        return jsonify(client.embed(texts).tolist())

    return app


app = plain() if os.environ["BENCH_APP"] == "plain" else create_app(instant_client(), Settings())
