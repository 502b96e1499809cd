"""Calls of several requests: sent together, answered in order, by one deadline, and withdrawn when one fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from gpu_server.client import Client
from gpu_server.connection import Reply
from gpu_server.errors import DeadlineExceeded, InvalidRequest, ModelFailed
from gpu_server.sending import AHEAD, Sending
from gpu_server.testing import FakeModel, FakeServer, embedding_model
from gpu_server.wire import VERSION, Limits, ReplyHeader, Tensor, Tensors

WAIT_S = 10.0


class Parts:
    """Requests that are answered by hand."""

    def __init__(self) -> None:
        self.futures: list[Future[Reply]] = []

    def submit(self, part: Tensors) -> Future[Reply]:
        self.futures.append(Future())
        return self.futures[-1]

    def answer(self, number: int) -> Reply:
        reply = Reply(ReplyHeader(v=VERSION, id=bytes([number])), {})
        self.futures[number].set_result(reply)
        return reply


def test_a_few_are_outstanding_and_replies_keep_the_order() -> None:
    parts = Parts()
    with Sending(parts.submit) as sending:
        for _ in range(AHEAD):
            assert list(sending.add({})) == []
        waiting = sending.add({})
        assert next(waiting) is parts.futures[0]
        assert len(parts.futures) == AHEAD
        replies = [parts.answer(number) for number in (1, 0)]
        with pytest.raises(StopIteration):
            waiting.send(replies[1])
        assert len(parts.futures) == AHEAD + 1
        assert sending.replies == [replies[1]]


def test_what_is_outstanding_is_cancelled() -> None:
    parts = Parts()

    def fail() -> None:
        with Sending(parts.submit) as sending:
            for _ in range(3):
                assert list(sending.add({})) == []
            steps = sending.finish()
            assert next(steps) is parts.futures[0]
            steps.throw(ModelFailed("broken"))

    with pytest.raises(ModelFailed):
        fail()
    assert all(future.cancelled() for future in parts.futures)


def meeting(parties: int) -> tuple[FakeModel, list[int]]:
    """A model that answers only when `parties` requests are with it at once, and the sizes of what it was sent."""
    model, barrier, sizes = embedding_model("m"), threading.Barrier(parties, timeout=WAIT_S), []
    answer = model.handler

    def handler(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        sizes.append(inputs["input_ids"].items)
        barrier.wait()
        return answer(inputs, params)

    model.handler = handler
    return model, sizes


def by_texts(client: Client, texts: list[str]) -> Any:
    return client.embed(texts)


def by_parts(client: Client, texts: list[str]) -> Any:
    tokenizer = client.tokenizer()
    assert tokenizer is not None
    parts = [tokenizer.inputs([text]) for text in texts]
    return np.concatenate([reply.outputs["embedding"].to_numpy() for reply in client.requests(parts)])


@pytest.mark.parametrize("call", [by_texts, by_parts])
def test_parts_are_with_the_server_at_once(call: Callable[[Client, list[str]], Any]) -> None:
    texts = [f"text {i}" for i in range(2 * AHEAD)]
    model, sizes = meeting(AHEAD)
    with (
        FakeServer(model, limits=Limits(max_items=1)) as server,
        Client(server.endpoint, timeout_s=WAIT_S) as c,
    ):
        together = call(c, texts)
        assert sizes == [1] * len(texts)
    with FakeServer(embedding_model("m")) as server, Client(server.endpoint) as c:
        np.testing.assert_array_equal(together, c.embed(texts))


def test_one_deadline_for_all() -> None:
    model, answered = embedding_model("m"), threading.Event()
    answer = model.handler

    def handler(inputs: Tensors, params: Mapping[str, Any]) -> Mapping[str, Any]:
        answered.wait(WAIT_S)
        return answer(inputs, params)

    model.handler = handler
    with FakeServer(model, limits=Limits(max_items=1)) as server, Client(server.endpoint) as client:
        client.tokenizer()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.embed(["a"] * 3 * AHEAD, timeout_s=0.2)
        assert time.monotonic() - began < WAIT_S / 2
        answered.set()


def test_texts_are_numbered_from_the_first_of_all() -> None:
    with (
        FakeServer(embedding_model("m"), limits=Limits(max_items=2)) as server,
        Client(server.endpoint) as client,
    ):
        with pytest.raises(
            InvalidRequest, match="input 3 has 102 tokens, more than max_length = 64"
        ) as error:
            client.embed(["a", "b", "c", "x" * 100], truncate=False)
        assert error.value.details["item"] == 3


def test_no_part_is_no_request() -> None:
    with FakeServer(embedding_model("m")) as server, Client(server.endpoint) as client:
        assert client.requests([]) == []
        assert "infer" not in server.requests
        (reply,) = client.requests([{"input_ids": Tensor.from_rows([[1]])}])
        assert reply.outputs["embedding"].items == 1
