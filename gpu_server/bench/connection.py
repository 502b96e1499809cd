"""A keep-alive connection that carries one request at a time and opens again by itself."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from gpu_server.bench.answer import Answer, BadAnswer

RETRY_S = 0.1


class Stream(asyncio.Protocol):
    """One socket; tells the connection that owns it, until it is dropped."""

    def __init__(self, owner: Connection) -> None:
        self.owner: Connection | None = owner
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self.owner:
            self.owner.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket has ended."""
        if self.owner:
            self.owner.lost()

    def drop(self) -> None:
        """Close at once and tell nobody."""
        self.owner = None
        if self.transport:
            self.transport.abort()


class Connection:
    """Sends a request with `send`; `ended` is called once for each, with its HTTP status or what went wrong."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, ended: Callable[[Connection, str], None]
    ) -> None:
        self.since_s = 0.0
        self.busy = False
        self._address = (host, port)
        self._tls = tls
        self._ended = ended
        self._answer = Answer()
        self._stream: Stream | None = None
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect. Raises OSError."""
        loop = asyncio.get_running_loop()
        _, self._stream = await loop.create_connection(lambda: Stream(self), *self._address, ssl=self._tls)

    def send(self, request: bytes, since_s: float) -> None:
        """Send a request whose waiting time began at `since_s`; connects first if the server closed before."""
        self.since_s = since_s
        self.busy = True
        self._answer = Answer()
        if self._stream and self._stream.transport:
            self._stream.transport.write(request)
        else:
            self._opening = asyncio.ensure_future(self._open_and_send(request))

    def expire(self, before_s: float) -> None:
        """Give up the request if it has waited since before then."""
        if self.busy and self.since_s < before_s:
            if self._opening:
                self._opening.cancel()
            self._finish("timeout", keep=False)

    def close(self) -> None:
        """End the socket; nothing is told."""
        if self._opening:
            self._opening.cancel()
        if self._stream:
            self._stream.drop()

    def received(self, data: bytes) -> None:
        """Bytes of the answer."""
        if not self.busy:
            self._drop()
            return
        try:
            done = self._answer.feed(data)
        except BadAnswer:
            self._finish("not HTTP", keep=False)
            return
        if done:
            self._finish(str(self._answer.status), keep=self._answer.keep_alive)

    def lost(self) -> None:
        """The server closed the socket."""
        complete = self._answer.end()
        if self.busy:
            self._finish(str(self._answer.status) if complete else "connection lost", keep=False)
        else:
            self._drop()

    async def _open_and_send(self, request: bytes) -> None:
        try:
            await self.open()
        except OSError:
            # A server that is away is asked ten times a second, not as fast as it can refuse.
            await asyncio.sleep(RETRY_S)
            self._opening = None
            self._finish("no connection", keep=False)
            return
        self._opening = None
        assert self._stream and self._stream.transport
        self._stream.transport.write(request)

    def _finish(self, outcome: str, *, keep: bool) -> None:
        self.busy = False
        if not keep:
            self._drop()
        self._ended(self, outcome)

    def _drop(self) -> None:
        if self._stream:
            self._stream.drop()
            self._stream = None
