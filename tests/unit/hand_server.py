"""A server that answers only when the test says so."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import zmq
from running_daemon import until

from gpu_server.aio import AsyncClient
from gpu_server.client import Client
from gpu_server.connection import Connection, Reply
from gpu_server.wire import RequestHeader, encode_reply
from gpu_server.wire.header import ReplyHeader, unpack_request

GREETING = b"c"
"""The id of the `hello` that a connection asks for itself."""


class HandServer:
    """A ROUTER; `receive` answers greetings as they come and returns what comes after them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger, self.socket.rcvtimeo = 0, 10_000
        self.socket.bind(endpoint)

    def receive(self) -> tuple[bytes, RequestHeader]:
        while True:
            peer, header = self.receive_first()
            if header.id != GREETING:
                return peer, header
            self.answer(peer, header.id)

    def receive_first(self) -> tuple[bytes, RequestHeader]:
        """What comes next, a greeting or not."""
        peer, _, header, *_ = self.socket.recv_multipart()
        return peer, unpack_request(header)

    def answer(self, peer: bytes, request_id: bytes) -> None:
        self.socket.send_multipart([peer, *encode_reply(ReplyHeader(v=1, id=request_id))])


def connect(client: Client | AsyncClient) -> Connection:
    """A client's connection, once it is up: until then a call would end as one that was never sent."""
    connection = client._calls.connections.get()
    until(lambda: connection._up, "the connection", 10)
    return connection


def greet(connection: Connection, server: HandServer) -> None:
    """Ask and answer one request: from then on each is sent by the turn in which it is noticed, however late that is."""
    future = ask(connection, 60)
    peer, header = server.receive()
    server.answer(peer, header.id)
    future.result(10)


def ask(connection: Connection, timeout_s: float = 10.0, op: str = "infer", **header: Any) -> Future[Reply]:
    """A request without inputs."""
    return connection.submit(RequestHeader(v=1, id=b"-", op=op, **header), None, timeout_s)
