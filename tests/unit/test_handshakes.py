"""Handshakes of a client with daemons that want other keys than it has: an error that says so, and no waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from gpu_server.connection import Connection
from gpu_server.curve import ClientKeys
from gpu_server.errors import EndpointForbidden
from gpu_server.handshakes import TRIES, Handshakes
from gpu_server.wire import RequestHeader

Socket = zmq.Socket[bytes]
BROKEN_OFF = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


@pytest.fixture
def router() -> Iterator[Socket]:
    """A socket to bind on loopback."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        yield socket


def serve(socket: Socket, key: bytes | None = None) -> str:
    """Its endpoint; key: what it wants its clients to know the public half of."""
    if key is not None:
        socket.curve_server, socket.curve_secretkey = 1, key
    return f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"


def client_keys(server: bytes) -> ClientKeys:
    return ClientKeys(*zmq.curve_keypair(), server)


def call(endpoint: str, keys: ClientKeys | None) -> None:
    connection = Connection(endpoint, keys)
    try:
        connection.submit(RequestHeader(v=1, id=b"-", op="status"), None, 30).result(10)
    finally:
        connection.close()


def test_a_daemon_that_wants_a_key(router: Socket) -> None:
    endpoint = serve(router, zmq.curve_keypair()[1])
    with pytest.raises(EndpointForbidden, match=r"wants a key \(GPU_SERVER_CURVE_CLIENT_KEY_FILE\)") as error:
        call(endpoint, None)
    assert error.value.details == {"endpoint": endpoint}


def test_a_daemon_with_another_key(router: Socket) -> None:
    endpoint = serve(router, zmq.curve_keypair()[1])
    with pytest.raises(EndpointForbidden, match="whose key is not that of GPU_SERVER_CURVE_SERVER_KEY_FILE"):
        call(endpoint, client_keys(zmq.curve_keypair()[0]))


def test_a_daemon_without_keys_is_not_taken_for_one_with(router: Socket) -> None:
    with pytest.raises(EndpointForbidden, match="or without one"):
        call(serve(router), client_keys(zmq.curve_keypair()[0]))


def test_a_connection_that_was_refused_says_why_to_whoever_comes_later(router: Socket) -> None:
    connection = Connection(serve(router, zmq.curve_keypair()[1]))
    header = RequestHeader(v=1, id=b"-", op="status")
    with pytest.raises(EndpointForbidden):
        connection.submit(header, None, 30).result(10)
    assert connection.closed
    with pytest.raises(EndpointForbidden, match="ends every handshake"):
        connection.submit(header, None, 30)
    connection.close()


def test_one_that_was_broken_off_is_tried_again() -> None:
    handshakes = Handshakes("tcp://127.0.0.1:5", None)
    for _ in range(3):
        for _ in range(TRIES - 1):
            handshakes.saw(BROKEN_OFF)
        handshakes.saw(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    for _ in range(TRIES - 1):
        handshakes.saw(BROKEN_OFF)
    with pytest.raises(EndpointForbidden):
        handshakes.saw(BROKEN_OFF)


def test_on_ipc_there_are_no_keys_to_be_wrong() -> None:
    handshakes = Handshakes("ipc:///run/s", None)
    for _ in range(2 * TRIES):
        handshakes.saw(BROKEN_OFF)
