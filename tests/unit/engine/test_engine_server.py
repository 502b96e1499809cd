"""The engine's end of the channel: every batch gets its own answer, or one that says why not."""

from __future__ import annotations

import gc
import logging
import socket as sockets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from gpu_server import shared_frames
from gpu_server.channel import Channel
from gpu_server.engine.loader import LoadedModel
from gpu_server.engine.runner import Runner
from gpu_server.engine.server import EngineServer
from gpu_server.errors import DeviceLost, InvalidRequest
from gpu_server.models.base import Model
from gpu_server.wire import ReplyHeader, RequestHeader, Tensor, Tensors, Timing, decode_reply, encode_request
from gpu_server.wire.documents import ModelInfo
from gpu_server.wire.header import ErrorBody

LAST = -1.0
TOO_LARGE = -2.0
RAISES = -3.0
WIDTH = 256
Exchange = Callable[..., list[tuple[ReplyHeader, Tensors]]]


class Once(Model):
    """Answers from a buffer that each forward overwrites; LAST ends the engine, TOO_LARGE fits no memory, RAISES raises."""

    check_finite = True

    def __init__(self) -> None:
        self._buffer = torch.zeros(1 << 15, WIDTH)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = batch["x"]
        if float(x[0]) == LAST:
            raise RuntimeError("CUDA error: the last batch")
        if TOO_LARGE in x:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if RAISES in x:
            raise KeyError("what a caller sent")
        answer = self._buffer[: len(x)]
        answer.copy_(x[:, None])
        return answer


class Wide(Model):
    """Answers the first number of each row; fails on rows that begin with RAISES."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        first = batch["x"][:, :1].clone()
        if LAST in first:
            raise RuntimeError("CUDA error: the last batch")
        if RAISES in first:
            raise type(self._error)(*self._error.args)
        return first


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """Send batches to an engine, all before it reads the first; gives its replies in order, read after the last has run."""
    daemon, engine = map(Channel, sockets.socketpair())

    def run(*batches: np.ndarray[Any, Any]) -> list[tuple[ReplyHeader, Tensors]]:
        for number, batch in enumerate((*batches, np.array([LAST]))):
            header = RequestHeader(v=1, id=bytes([number + 1]), op="infer", model="m")
            daemon.send(encode_request(header, {"x": Tensor.from_numpy(batch.astype(np.float32))}))
        with pytest.raises(DeviceLost):
            server(engine).serve()
        return [decode_reply(sent(engine, daemon)) for _ in batches]

    yield run
    daemon.close()
    engine.close()


def server(channel: Channel, model: Model | None = None) -> EngineServer:
    model = model or Once()
    loaded = LoadedModel(model, Runner(model, torch.device("cpu")), ModelInfo(name="m"))
    return EngineServer(channel, {"m": loaded}, in_flight=2, max_bytes=1 << 24)


def sent(source: Channel, to: Channel) -> list[memoryview]:
    """The next message, of which `source` may have sent a part only."""
    for _ in range(1000):
        if (frames := to.receive()) is not None:
            return frames
        assert source.receive() is None
    raise AssertionError("no message came")


def test_an_answer_on_its_way_is_not_overwritten_by_the_next_batch(exchange: Exchange) -> None:
    count = 1 << 13  # an answer is more than the socket takes
    replies = exchange(*(np.full(count, n) for n in range(4)))
    for number, (_, outputs) in enumerate(replies):
        assert (outputs["output"].to_numpy() == number).all()


def test_more_failed_items_than_a_reply_can_name_are_one_error(exchange: Exchange) -> None:
    (refused, _), (good, outputs) = exchange(np.full(20_000, np.nan), np.arange(2))
    assert isinstance(refused.error, ErrorBody)
    assert (refused.id, refused.error.code) == (b"\1", "model_failed")
    assert refused.error.message.startswith("20000 items failed: reply header of")
    assert (good.id, outputs["output"].to_numpy()[:, 0].tolist()) == (b"\2", [0, 1])


def test_items_that_fail_alone_are_named(exchange: Exchange) -> None:
    ((header, outputs),) = exchange(np.array([1, np.nan, 3]))
    assert [(error.item, error.code) for error in header.item_errors] == [(1, "model_failed")]
    assert outputs["output"].to_numpy()[:, 0].tolist() == [1, 0, 3]


def test_the_log_names_the_place_of_what_the_model_raised_and_not_its_words(
    exchange: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "gpu_server.engine.server")
    replies = exchange(np.array([1]), np.array([1, RAISES, 3, 4]), np.array([RAISES]))
    assert replies[1][0].item_errors[0].message == "the model raised KeyError"
    line = Once.forward.__code__.co_firstlineno + 7
    facts = [(r.levelname, r.getMessage(), vars(r)["batch"], vars(r)["error"]) for r in caplog.records]
    assert facts == [
        ("WARNING", "the model raised", batch, f"KeyError (test_engine_server.py:{line})") for batch in (2, 3)
    ]
    assert all(vars(r)["model"] == "m" and "a caller" not in str(vars(r)) for r in caplog.records)


def test_a_batch_of_which_nothing_fits_still_says_what_a_batch_may_cost(exchange: Exchange) -> None:
    ((header, outputs),) = exchange(np.full(8, TOO_LARGE))
    assert isinstance(header.timing, Timing)
    assert (len(header.item_errors), outputs, header.timing.batch_tokens) == (8, {}, 1)
    assert header.item_errors[0].code == "out_of_memory"
    assert header.timing.compute_us > 0


def test_an_engine_without_a_daemon_ends() -> None:
    daemon, engine = map(Channel, sockets.socketpair())
    daemon.close()
    server(engine).serve()
    engine.close()


@pytest.mark.parametrize("error", [ValueError("no"), InvalidRequest("no")], ids=repr)
@pytest.mark.parametrize(("items", "bad"), [(1, 1), (4, 4), (4, 1)])
def test_a_failed_batch_is_let_go_of_without_a_collection(error: Exception, items: int, bad: int) -> None:
    """Else one of them would keep the oldest place in shared memory, and all later ones would go through the socket."""
    one, other = sockets.socketpair()
    daemon, engine = Channel(one, shared_frames.offer(one)), Channel(other, shared_frames.accept(other))
    failing = np.ones((items, 20_000), np.float32)
    failing[:bad, 0] = RAISES
    last = np.full((1, 1), LAST, np.float32)
    gc.collect()
    gc.disable()
    try:
        for number, batch in enumerate((failing, np.ones_like(failing), last)):
            header = RequestHeader(v=1, id=bytes([number + 1]), op="infer", model="m")
            daemon.send(encode_request(header, {"x": Tensor.from_numpy(batch)}))
        assert len(daemon._writer._lent) == 2
        with suppress(DeviceLost):
            server(engine, Wide(error)).serve()
        # What it has let go of goes back with the next message.
        engine.send([b"", b"any"])
        while (frames := daemon.receive(wait=True)) is not None and frames[1] != b"any":
            pass
        assert not daemon._writer._lent
    finally:
        gc.enable()
        daemon.close()
        engine.close()
