"""`AsyncClient`: the same calls, awaited; a cancelled task cancels its request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hand_server import connect
from running_daemon import until

from gpu_server.aio import AsyncClient
from gpu_server.client import Client
from gpu_server.connection import Connection
from gpu_server.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, Unavailable
from gpu_server.testing import FakeModel, FakeServer, embedding_model
from gpu_server.wire import Tensor
from gpu_server.wire.documents import ModelInfo


@pytest.fixture
def release() -> threading.Event:
    return threading.Event()


@pytest.fixture
def server(release: threading.Event) -> Iterator[FakeServer]:
    def slow(inputs: object, params: object) -> dict[str, object]:
        release.wait(20)
        return {"y": [1]}

    echo = FakeModel(ModelInfo(name="echo"), lambda inputs, params: dict(inputs))
    with FakeServer(embedding_model(), echo, FakeModel(ModelInfo(name="slow"), slow)) as running:
        yield running
        release.set()


def test_answers_are_those_of_the_client(server: FakeServer) -> None:
    async def work() -> None:
        async with AsyncClient(server.endpoint) as client:
            np.testing.assert_array_equal(await client.embed(["a", "b"]), expected)
            assert (await client.infer("echo", x=[1, 2]))["x"].tolist() == [1, 2]
            assert [m.name for m in await client.models()] == ["fake/embedding", "echo", "slow"]
            assert (await client.model("echo")).name == "echo"
            assert (await client.status()).state == (await client.hello()).state == "ready"
            assert "gpu_server_fake" in await client.metrics()
            tokenizer = await client.tokenizer()
            assert tokenizer is not None
            assert tokenizer.info.max_length == 64
            embedded = await client.text_request(["a", "b"], params={"dimensions": 8})
            np.testing.assert_allclose(embedded.outputs["embedding"].to_numpy(), expected, rtol=1e-6)
            echoed = await client.infer_request("echo", {"x": [1, 2]}, priority=0)
            assert echoed.outputs["x"].to_numpy().tolist() == [1, 2]
            sent = await client.request({"x": Tensor.from_strings(["a"])}, model="echo")
            assert sent.outputs["x"].strings() == ["a"]

    with Client(server.endpoint) as blocking:
        expected = blocking.embed(["a", "b"])
    asyncio.run(work())


def test_many_at_once_each_get_their_own(server: FakeServer) -> None:
    async def work() -> None:
        async with AsyncClient(server.endpoint) as client:
            got = await asyncio.gather(*(client.infer("echo", x=[number]) for number in range(100)))
        assert [answer["x"].tolist() for answer in got] == [[number] for number in range(100)]

    asyncio.run(work())


def test_errors_are_raised_where_they_are_awaited(server: FakeServer) -> None:
    async def work() -> None:
        async with AsyncClient(server.endpoint) as client:
            with pytest.raises(ModelNotFound):
                await client.infer("nope", x=[1])
            with pytest.raises(InvalidRequest):
                await client.embed("a" * 100, truncate=False)
            with pytest.raises(DeadlineExceeded):
                await client.infer("slow", x=[1], timeout_s=0.1)
        async with AsyncClient("ipc:///nonexistent/s") as client:
            with pytest.raises(Unavailable):
                await client.embed("a")

    asyncio.run(work())


def test_one_deadline_holds_where_the_server_is_silent(silent: str) -> None:
    async def work() -> None:
        async with AsyncClient(silent, timeout_s=60) as client:
            await asyncio.to_thread(connect, client)
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await client.embed("a", timeout_s=0.3)
            assert 0.3 <= time.monotonic() - started < 10

    asyncio.run(work())


def test_closing_does_not_wait_for_the_thread(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hang in the look-up of a host, and with it the event loop."""
    joined: list[str] = []

    async def work() -> None:
        client = AsyncClient(server.endpoint)
        await client.hello()
        with monkeypatch.context() as patched:
            patched.setattr(Connection, "close", lambda self: joined.append(threading.current_thread().name))
            client.close()
            assert joined == []
            async with client:
                await client.hello()
            assert joined != [threading.main_thread().name]
            assert len(joined) == 1
        client.close()

    asyncio.run(work())


def test_a_dropped_client_leaves_no_thread(server: FakeServer) -> None:
    async def work() -> None:
        await AsyncClient(server.endpoint).hello()

    elders = set(threading.enumerate())
    asyncio.run(work())
    until(
        lambda: "gpu-server-client" not in {t.name for t in threading.enumerate() if t not in elders},
        "its thread's end",
        10,
    )


def test_a_cancelled_task_cancels_its_request(server: FakeServer) -> None:
    async def work() -> None:
        async with AsyncClient(server.endpoint) as client:
            await client.hello()
            task = asyncio.create_task(client.infer("slow", x=[1]))
            while not server.requests.get("infer"):
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, lambda: server.requests.get("cancel"), "the cancel", 10)
            assert (await client.infer("echo", x=[7]))["x"].tolist() == [7]

    asyncio.run(work())
