"""A connection that ends before the daemon has answered on it: it may never have been read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hand_server import GREETING, HandServer, ask
from running_daemon import until

from gpu_server.connection import Connection
from gpu_server.errors import DeadlineExceeded, Unavailable
from gpu_server.wire import error_reply


def lose(connection: Connection, server: HandServer) -> None:
    before = connection.generation
    server.socket.close()
    until(lambda: connection.generation > before, "the end of the connection", 10)


def test_a_request_is_sent_once_the_daemon_has_answered(
    serve: Callable[[], HandServer], connection: Connection
) -> None:
    server = serve()
    futures = [ask(connection, 60, "infer") for _ in range(2)]
    peer, greeting = server.receive_first()
    assert (greeting.id, greeting.op) == (GREETING, "hello")
    assert not server.socket.poll(50)
    server.answer(peer, greeting.id)
    for future in futures:
        peer, header = server.receive_first()
        assert header.op == "infer"
        server.answer(peer, header.id)
        assert future.result(10)
    assert connection.late_replies == 0


@pytest.mark.parametrize("refused", [False, True])
def test_any_answer_will_do(serve: Callable[[], HandServer], connection: Connection, refused: bool) -> None:
    server = serve()
    future = ask(connection, 60, "status")
    peer, header = server.receive_first()
    assert header.op == "status"
    if refused:
        server.socket.send_multipart([peer, *error_reply(header.id, "internal_error", "no")])
    else:
        server.answer(peer, header.id)
    assert (future.exception(10) is not None) == refused
    ask(connection, 60, "infer")
    assert server.receive_first()[1].op == "infer"


def test_what_it_may_not_have_read_is_sent_on_the_next_connection(
    serve: Callable[[], HandServer], connection: Connection
) -> None:
    server = serve()
    futures = [ask(connection, 60, op) for op in ("hello", "status", "infer")]
    assert [server.receive_first()[1].op for _ in futures] == ["hello", "status", "hello"]
    server.socket.close()
    server = serve()
    seen = []
    for _ in futures:
        peer, header = server.receive()
        seen.append(header.op)
        server.answer(peer, header.id)
    assert sorted(seen) == ["hello", "infer", "status"]
    assert all(future.result(10) for future in futures)
    assert connection.late_replies == 0


def test_what_may_not_be_asked_twice_fails(serve: Callable[[], HandServer], connection: Connection) -> None:
    server = serve()
    future = ask(connection, 60, "reload")
    server.receive_first()
    server.socket.close()
    with pytest.raises(Unavailable, match="was lost"):
        future.result(5)


@pytest.mark.parametrize("op", ["hello", "infer"])
def test_where_nobody_follows_it_fails_at_once(
    serve: Callable[[], HandServer], connection: Connection, op: str
) -> None:
    server = serve()
    future = ask(connection, 60, op)
    server.receive_first()
    server.socket.close()
    with pytest.raises(Unavailable, match="no gpu-server daemon answers"):
        future.result(5)


def test_each_connection_is_greeted_anew(serve: Callable[[], HandServer], connection: Connection) -> None:
    for _ in range(2):
        server = serve()
        ask(connection, 60, "infer")
        peer, header = server.receive_first()
        assert header.id == GREETING
        server.answer(peer, header.id)
        assert server.receive_first()[1].op == "infer"
        lose(connection, server)


def test_of_a_daemon_that_hangs_a_call_hears_whether_it_was_sent(
    serve: Callable[[], HandServer], connection: Connection
) -> None:
    """Its process takes connections and answers nothing: of what was sent nobody knows, what was not may be repeated."""
    server = serve()
    until(lambda: connection._up, "the connection", 10)
    sent, held = ask(connection, 0.3, "status"), ask(connection, 0.3, "infer")
    with pytest.raises(DeadlineExceeded):
        sent.result(10)
    with pytest.raises(Unavailable, match="until its deadline and was not sent"):
        held.result(10)
    assert [server.receive_first()[1].op for _ in range(2)] == ["status", "hello"]
    assert not server.socket.poll(50)
