"""How a client's calls end: at their deadline, and with the daemon; and how the next ones find it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hand_server import connect
from metronome import Metronome
from running_daemon import until

from gpu_server.aio import AsyncClient
from gpu_server.client import Client
from gpu_server.errors import ConfigError, DeadlineExceeded, InvalidRequest, Unavailable
from gpu_server.per_process import PerProcess
from gpu_server.testing import FakeModel, FakeServer, embedding_model
from gpu_server.wire import Limits, Tensor
from gpu_server.wire.documents import ModelInfo


def test_a_slow_answer_ends_at_the_deadline() -> None:
    release = threading.Event()

    def wait(inputs: dict[str, Tensor], params: object) -> dict[str, Tensor]:
        release.wait(60)
        return inputs

    slow = FakeModel(ModelInfo(name="slow"), wait)  # type: ignore[arg-type]
    with FakeServer(slow) as server, Client(server.endpoint, timeout_s=60) as client:
        client.hello()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.infer("slow", x=[1], timeout_s=0.2)
        assert 0.2 <= time.monotonic() - started < 10
        release.set()
        connection = client._calls.connections.get()
        until(lambda: connection.late_replies == 1, "the late reply", 10)


SILENT_CALLS: dict[str, Callable[[Client], object]] = {
    "embed": lambda client: client.embed("a", timeout_s=0.3),
    "text_request": lambda client: client.text_request(["a"], timeout_s=0.3),
    "infer": lambda client: client.infer("m", x=[1], timeout_s=0.3),
    "request": lambda client: client.request({"x": Tensor.from_strings(["a"])}, timeout_s=0.3),
    "hello": lambda client: client.hello(timeout_s=0.3),
    "status": lambda client: client.status(timeout_s=0.3),
    "metrics": lambda client: client.metrics(timeout_s=0.3),
    "models": lambda client: client.models(timeout_s=0.3),
    "model": lambda client: client.model(timeout_s=0.3),
    "tokenizer": lambda client: client.tokenizer(timeout_s=0.3),
}


@pytest.mark.parametrize("name", SILENT_CALLS)
def test_one_deadline_holds_where_the_server_is_silent(silent: str, name: str) -> None:
    with Client(silent, timeout_s=60) as client:
        connect(client)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            SILENT_CALLS[name](client)
        assert 0.3 <= time.monotonic() - started < 10


@pytest.mark.parametrize("timeout_s", [-1, -0.001, float("nan")])
def test_what_is_no_time_out_is_refused_by_each_call(silent: str, timeout_s: float) -> None:
    with (
        Client(silent) as client,
        pytest.raises(InvalidRequest, match=r"timeout_s is .*; it must be 0 seconds"),
    ):
        client.embed("a", timeout_s=timeout_s)
    with Client(silent) as client, pytest.raises(DeadlineExceeded):
        client.embed("a", timeout_s=0)


@pytest.mark.parametrize("timeout_s", [-1, 0, float("nan")])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_no_client_is_made_with_what_is_no_time_out(
    kind: type[Client | AsyncClient], timeout_s: float
) -> None:
    with pytest.raises(ConfigError, match=r"timeout_s is .*; it must be more than 0 seconds"):
        kind("ipc:///nowhere", timeout_s=timeout_s)
    assert kind("ipc:///nowhere", timeout_s=float("inf"))


def test_one_deadline_holds_over_all_requests_of_a_call() -> None:
    model = embedding_model()

    def slow(inputs: dict[str, Tensor], params: object) -> object:
        threading.Event().wait(0.2)
        return model.handler(inputs, params)  # type: ignore[arg-type]

    fake = FakeModel(model.info, slow, model.tokenizer)  # type: ignore[arg-type]
    with (
        FakeServer(fake, limits=Limits(max_items=1)) as server,
        Client(server.endpoint) as client,
        Metronome() as metronome,
    ):
        client.hello()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.embed(["a"] * 50, timeout_s=0.5)
        assert metronome.ran_s(started) < 2


def test_what_is_remembered_of_a_connection_is_not_taken_for_another(server: FakeServer) -> None:
    first, second = (PerProcess(server.endpoint) for _ in range(2))
    assert first.get().serial != second.get().serial
    with Client(server.endpoint) as client:
        client.hello()
        client.close()
        client.hello()
    assert server.requests["hello"] == 2
    first.close()
    second.close()


def test_a_daemon_that_comes_back_is_used_again(own_endpoint: str) -> None:
    with Client(own_endpoint, timeout_s=10) as client:
        with FakeServer(endpoint=own_endpoint):
            client.embed("a")
        with pytest.raises(Unavailable):
            client.embed("a")
        with FakeServer(embedding_model(dimensions=4), endpoint=own_endpoint):
            until(lambda: client.embed("a").shape == (1, 4) if _up(client) else False, "the new daemon", 10)


def _up(client: Client) -> bool:
    try:
        return client.status().state == "ready"
    except Unavailable:
        return False


def test_after_close_the_next_call_connects_anew(server: FakeServer, client: Client) -> None:
    client.embed("a")
    client.close()
    assert client.embed("a").shape == (1, 8)
