"""A call that its caller breaks off: what it has asked for is cancelled, and nothing of it stays."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from running_daemon import until

from gpu_server.aio import AsyncClient
from gpu_server.client import Client
from gpu_server.errors import ModelFailed
from gpu_server.testing import FakeModel, FakeServer
from gpu_server.wire import Limits, Tensor
from gpu_server.wire.documents import ModelInfo

PARTS = [{"x": Tensor.from_strings([text])} for text in "abc"]


@pytest.fixture
def release() -> threading.Event:
    return threading.Event()


@pytest.fixture
def server(release: threading.Event) -> Iterator[FakeServer]:
    def slow(inputs: object, params: object) -> dict[str, object]:
        release.wait(20)
        return {"y": [1]}

    def fail(inputs: object, params: object) -> dict[str, object]:
        raise ModelFailed("no")

    models = [FakeModel(ModelInfo(name="slow"), slow), FakeModel(ModelInfo(name="bad"), fail)]
    with FakeServer(*models, limits=Limits(max_items=1)) as running:
        yield running
        release.set()


def test_an_interrupt_cancels_the_request(server: FakeServer) -> None:
    def interrupted(future: Future[Any]) -> Any:
        if client._calls._hello is None:
            return future.result(10)
        until(lambda: server.requests.get("infer"), "the request", 10)
        raise KeyboardInterrupt

    with Client(server.endpoint, timeout_s=10) as client:
        with pytest.raises(KeyboardInterrupt):
            client.request(PARTS[0], model="slow", wait=interrupted)
        until(lambda: server.requests.get("cancel") == 1, "the cancel", 10)


def test_a_cancelled_task_cancels_all_its_requests_though_its_error_is_kept(server: FakeServer) -> None:
    async def work() -> None:
        async with AsyncClient(server.endpoint, timeout_s=10) as client:
            task = asyncio.create_task(client.requests(PARTS, model="slow"))
            sent = partial(server.requests.get, "infer", 0)
            await asyncio.to_thread(until, lambda: sent() == len(PARTS), "the requests", 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as kept:
                await task
            cancelled = partial(server.requests.get, "cancel", 0)
            await asyncio.to_thread(until, lambda: cancelled() == len(PARTS), "the cancels", 10)
            assert kept.value

    asyncio.run(work())


def test_a_failed_call_is_freed_with_its_error(server: FakeServer) -> None:
    def failed(client: Client) -> weakref.ref[ModelFailed]:
        try:
            client.requests(PARTS, model="bad")
        except ModelFailed as error:
            return weakref.ref(error)
        raise AssertionError("the model did not fail")

    async def failed_task(client: AsyncClient) -> weakref.ref[ModelFailed]:
        try:
            await client.requests(PARTS, model="bad")
        except ModelFailed as error:
            return weakref.ref(error)
        raise AssertionError("the model did not fail")

    async def work() -> None:
        async with AsyncClient(server.endpoint, timeout_s=10) as client:
            error = await failed_task(client)
            await asyncio.to_thread(until, lambda: error() is None, "the error's end", 10)

    gc.collect()
    gc.disable()
    try:
        with Client(server.endpoint, timeout_s=10) as client:
            error = failed(client)
            until(lambda: error() is None, "the error's end", 10)
        asyncio.run(work())
    finally:
        gc.enable()


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_pickled_client_is_a_new_one(
    server: FakeServer, kind: type[Client] | type[AsyncClient], used: bool
) -> None:
    """As one that is handed to a process that is spawned."""
    made = kind(server.endpoint, timeout_s=7.0)
    if used:
        made._calls.connections.get()
    copied = pickle.loads(pickle.dumps(made))  # noqa: S301 - the test's own
    assert type(copied) is kind
    assert (copied._calls.endpoint, copied._calls.timeout_s) == (server.endpoint, 7.0)
    assert copied._calls.connections is not made._calls.connections
    made.close()
