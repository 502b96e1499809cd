"""One socket a process: every call ends, whatever the daemon does."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zmq
from hand_server import HandServer, ask
from metronome import Metronome
from running_daemon import until

from gpu_server import connection as connections
from gpu_server import pending
from gpu_server.connection import Connection
from gpu_server.errors import (
    Cancelled,
    EndpointForbidden,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ShuttingDown,
    Unavailable,
)
from gpu_server.testing import FakeServer
from gpu_server.wire import FAREWELL_ANSWER, RequestHeader, Tensor, encode_reply, error_reply
from gpu_server.wire.header import ReplyHeader


@pytest.fixture
def server(serve: Callable[[], HandServer]) -> HandServer:
    return serve()


def test_replies_in_any_order_reach_their_calls(server: HandServer, connection: Connection) -> None:
    futures = [ask(connection) for _ in range(5)]
    for peer, header in reversed([server.receive() for _ in futures]):
        server.answer(peer, header.id)
    ids = [future.result(10).header.id for future in futures]
    assert len(set(ids)) == 5
    assert ids == sorted(ids)


def test_an_error_reply_is_its_exception(server: HandServer, connection: Connection) -> None:
    future = ask(connection)
    peer, header = server.receive()
    frames = error_reply(header.id, "model_not_found", "no such model", False, {"models": ["a"]})
    server.socket.send_multipart([peer, *frames])
    with pytest.raises(ModelNotFound, match="no such model") as error:
        future.result(10)
    assert error.value.details == {"models": ["a"]}


def test_a_reply_that_cannot_be_read_fails_its_call_alone(server: HandServer, connection: Connection) -> None:
    bad, good = ask(connection), ask(connection)
    requests = [server.receive(), server.receive()]
    for (peer, header), extra in zip(requests, ([b"a frame too many"], []), strict=True):
        server.socket.send_multipart([peer, *encode_reply(ReplyHeader(v=1, id=header.id)), *extra])
    with pytest.raises(InternalError, match="reply cannot be read"):
        bad.result(10)
    assert good.result(10)


def test_cancelling_a_future_reaches_the_server(server: HandServer, connection: Connection) -> None:
    future = ask(connection)
    peer, header = server.receive()
    assert future.cancel()
    _, cancel = server.receive()
    assert (cancel.op, cancel.target) == ("cancel", header.id)
    frames = error_reply(header.id, Cancelled.code, "cancelled")
    server.socket.send_multipart([peer, *frames])
    server.answer(peer, cancel.id)
    until(lambda: connection.late_replies == 1, "the cancelled call's reply", 10)


def test_losing_the_daemon_fails_what_was_sent_at_once(
    serve: Callable[[], HandServer], server: HandServer, connection: Connection
) -> None:
    futures = [ask(connection, 60) for _ in range(3)]
    for _ in futures:
        server.receive()
    before = connection.generation
    started = time.monotonic()
    server.socket.close()
    for future in futures:
        with pytest.raises(Unavailable, match="was lost"):
            future.result(10)
    assert time.monotonic() - started < 10
    assert connection.generation == before + 1
    again = serve()
    future = ask(connection)
    peer, header = again.receive()
    again.answer(peer, header.id)
    assert future.result(10)


def test_nobody_there_is_said_at_once(connection: Connection) -> None:
    with pytest.raises(Unavailable, match="gpu-server start"):
        ask(connection)


def left_by_a_kill(endpoint: str) -> None:
    """The socket's file of a daemon that did not live to remove it."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(endpoint.removeprefix("ipc://"))


def test_a_socket_that_nobody_serves_is_said_at_once(own_endpoint: str, connection: Connection) -> None:
    left_by_a_kill(own_endpoint)
    with Metronome() as metronome:
        started = time.monotonic()
        for _ in range(20):
            with pytest.raises(Unavailable, match="no gpu-server daemon answers"):
                ask(connection, 60).result(10)
        assert metronome.ran_s(started) < 5


def test_after_a_kill_new_calls_fail_at_once_until_a_server_is_back(
    serve: Callable[[], HandServer], server: HandServer, connection: Connection
) -> None:
    """libzmq leaves the socket's file where it is, as a killed daemon does."""
    lost = ask(connection, 60)
    server.receive()
    server.socket.close()
    with pytest.raises(Unavailable, match="was lost"):
        lost.result(10)
    with Metronome() as metronome:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no gpu-server daemon answers"):
            ask(connection, 60).result(10)
        assert metronome.ran_s(started) < 5
    again = serve()
    future = ask(connection)
    peer, header = again.receive()
    again.answer(peer, header.id)
    assert future.result(10)


def refusal(request_id: bytes) -> list[Any]:
    return error_reply(request_id, ShuttingDown.code, "stopping", True, {"successor": True})


def test_a_request_refused_for_a_successor_is_sent_to_it_with_the_time_that_is_left(
    serve: Callable[[], HandServer], server: HandServer, connection: Connection
) -> None:
    future = ask(connection, 60)
    asked = time.monotonic()
    peer, header = server.receive()
    server.socket.send_multipart([peer, *refusal(header.id)])
    ask(connection, 60, op="status")
    assert server.receive()[1].op == "status", "others go to the server that still runs"
    until(lambda: time.monotonic() - asked > 0.2, "some of its time passes", 10)
    passed_ms = 1000 * (time.monotonic() - asked)
    server.socket.close()
    again = serve()
    peer, header = again.receive()
    assert header.op == "infer"
    assert header.deadline_ms <= 60_000 - passed_ms
    again.answer(peer, header.id)
    assert future.result(10)


def test_what_had_no_reply_at_the_farewell_is_sent_to_the_successor(
    serve: Callable[[], HandServer], server: HandServer, connection: Connection
) -> None:
    futures = [ask(connection, 60) for _ in range(3)]
    received = [server.receive() for _ in futures]
    peer, first = received[0]
    server.answer(peer, first.id)
    server.socket.send_multipart([peer, *refusal(b"")])
    assert futures[0].result(10)
    assert server.socket.recv_multipart() == [peer, *FAREWELL_ANSWER]
    futures.append(ask(connection, 60))
    server.socket.close()
    again = serve()
    for _ in range(3):
        peer, header = again.receive()
        again.answer(peer, header.id)
    assert [future.result(10).header.id for future in futures[1:]]
    assert connection.late_replies == 0


def test_a_refusal_without_a_successor_is_the_callers(server: HandServer, connection: Connection) -> None:
    future = ask(connection, 60)
    peer, header = server.receive()
    frames = error_reply(header.id, ShuttingDown.code, "draining", True)
    server.socket.send_multipart([peer, *frames])
    with pytest.raises(ShuttingDown):
        future.result(10)


def test_closing_fails_what_is_pending(server: HandServer, connection: Connection) -> None:
    future = ask(connection, 60)
    server.receive()
    connection.close()
    with pytest.raises(Unavailable, match="closed"):
        future.result(10)
    with pytest.raises(Unavailable, match="closed"):
        ask(connection)
    connection.close()


def test_what_cannot_be_encoded_is_an_invalid_request(server: HandServer, connection: Connection) -> None:
    with pytest.raises(InvalidRequest, match="4096"):
        ask(connection, params={"p": "x" * 5000})
    assert len(connection._pending) == 0


def test_pending_calls_are_bounded(
    server: HandServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MAX_PENDING", 2)
    ask(connection)
    ask(connection)
    with pytest.raises(Overloaded, match="2 requests of this process are already pending"):
        ask(connection)


def test_abandoning_takes_no_lock(server: HandServer, connection: Connection) -> None:
    """A garbage collection may come while this very thread holds the lock."""
    with connection._pending._lock:
        connection.abandon()
    connection._thread.join(10)
    assert connection._wake_write.fileno() == -1, "the thread has not ended"


def test_an_untrusted_folder_is_refused_even_where_the_socket_has_connected(
    server: HandServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(endpoint: str) -> None:
        raise EndpointForbidden("not yours")

    until(lambda: connection._up, "the connection", 10)
    monkeypatch.setattr(connections.endpoints, "check_reachable", refuse)
    with pytest.raises(EndpointForbidden):
        ask(connection)


def test_no_wake_up_is_lost(server: HandServer, connection: Connection) -> None:
    """A submit between the I/O thread's waking and its reading of the wake-up byte must not silence the next one."""

    class Nosy:
        """The wake-up socket, with another thread's submit just before it is read."""

        def __init__(self, socket: Any) -> None:
            self.socket = socket

        def fileno(self) -> int:
            return self.socket.fileno()

        def recv(self, size: int) -> bytes:
            connection._wake()
            data: bytes = self.socket.recv(size)
            return data

        def close(self) -> None:
            self.socket.close()

    ask(connection)
    server.receive()
    connection._wake_read = Nosy(connection._wake_read)  # type: ignore[assignment]
    for _ in range(3):
        ask(connection)
        server.receive()


def test_a_signal_s_handler_that_raises_leaves_it_awake(server: HandServer, connection: Connection) -> None:
    class Interrupted:
        """The wake-up socket, at the moment in which a handler raises."""

        def __init__(self, socket: Any) -> None:
            self.socket = socket

        def send(self, data: bytes) -> int:
            connection._wake_write = self.socket
            raise KeyboardInterrupt

    ask(connection)
    server.receive()
    connection._wake_write = Interrupted(connection._wake_write)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        connection._wake()
    ask(connection)
    server.receive()


def test_threads_share_it_and_no_answer_goes_astray() -> None:
    with FakeServer() as fake:
        connection = Connection(fake.endpoint)

        def work(thread: int) -> bool:
            for number in range(50):
                nonce = thread * 1000 + number
                inputs = {"x": Tensor.from_numpy(np.array([nonce]))}
                reply = connection.submit(
                    RequestHeader(v=1, id=b"-", op="infer", model="echo"), inputs, 10
                ).result(10)
                if reply.outputs["x"].to_numpy().tolist() != [nonce]:
                    return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))
        assert connection.late_replies == 0
        connection.close()


@pytest.mark.parametrize("failing", ["context", "thread"])
def test_where_nothing_more_can_be_opened_a_call_says_so_and_ends(
    own_endpoint: str, server: HandServer, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def no_context() -> None:
        raise zmq.ZMQError(errno.EMFILE)

    if failing == "thread":
        monkeypatch.setattr(threading.Thread, "start", no_thread)
    else:
        monkeypatch.setattr(zmq, "Context", no_context)
    with pytest.raises(Unavailable, match=r"can't start new thread|Too many open files"):
        ask(Connection(own_endpoint), 60).result(10)
