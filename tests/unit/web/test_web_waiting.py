"""A caller who has gone cancels what it asked for; one who is there waits as long as it takes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from running_daemon import until

from gpu_server.client import Client
from gpu_server.errors import Cancelled
from gpu_server.testing import FakeModel, FakeServer, embedding_model
from web import create_app
from web.settings import Settings
from web.waiting import FIRST_LOOK_S, LOOK_EVERY_S, Patience

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The two ends of one connection."""
    if request.param == "unix":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
    with ours, theirs:
        yield ours, theirs


def later(future: Future[int], seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, future.set_result, [7])
    timer.start()
    return timer


def test_it_waits_for_one_who_is_there(pair: Pair) -> None:
    future: Future[int] = Future()
    pair[1].send(b"the next request, sent ahead")
    timer = later(future, FIRST_LOOK_S + LOOK_EVERY_S / 2)
    assert Patience({"gunicorn.socket": pair[0]})(future) == 7
    timer.join()


@pytest.mark.parametrize("end", ["close", "half"])
def test_it_cancels_for_one_who_has_gone(pair: Pair, end: str) -> None:
    future: Future[int] = Future()
    if end == "close":
        pair[1].close()
    else:
        pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(Cancelled):
        Patience({"gunicorn.socket": pair[0]})(future)
    assert future.cancelled()


def test_an_answer_that_is_there_needs_no_look(pair: Pair) -> None:
    future: Future[int] = Future()
    future.set_result(7)
    pair[1].close()
    assert Patience({"gunicorn.socket": pair[0]})(future) == 7


def test_an_error_is_raised_as_it_is(pair: Pair) -> None:
    future: Future[int] = Future()
    future.set_exception(TimeoutError("of the call itself"))
    with pytest.raises(TimeoutError, match="of the call itself"):
        Patience({"gunicorn.socket": pair[0]})(future)


def test_without_a_socket_it_just_waits() -> None:
    future: Future[int] = Future()
    timer = later(future, FIRST_LOOK_S * 1.5)
    assert Patience({})(future) == 7
    timer.join()


def test_the_daemon_is_told(pair: Pair) -> None:
    release, asked = threading.Event(), threading.Event()
    model = embedding_model()

    def leave() -> None:
        """What has not been sent needs no cancel: the caller goes once the model has its request."""
        asked.wait(30)
        pair[1].close()

    def slow(inputs: object, params: object) -> dict[str, object]:
        asked.set()
        release.wait(30)
        return {"embedding": np.zeros((1, 8), np.float32)}

    with (
        FakeServer(FakeModel(model.info, slow, model.tokenizer)) as server,
        Client(server.endpoint) as client,
    ):
        http = create_app(client, Settings()).test_client()
        leaving = threading.Thread(target=leave)
        leaving.start()
        answer = http.post("/embed", json={"inputs": "a"}, environ_overrides={"gunicorn.socket": pair[0]})
        leaving.join()
        until(lambda: server.requests.get("cancel") == 1, "the cancel", 10)
        release.set()
        assert answer.status_code == 499
