"""Bounds a client's silence in the middle of a request, under TLS too, and tells the log that it is no error."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from collections.abc import Callable
from functools import wraps
from typing import Any

SILENCE_S = 15
"""How long a client may send nothing, or take nothing, in the middle of a request before its connection ends."""

RECORD_BYTES = 1 << 14
"""What one record of TLS holds at most."""

log = logging.getLogger("gunicorn.error")


class Silence(TimeoutError):
    """A client of TLS was silent for too long; where there is none, the socket raises BlockingIOError."""


def bound(sock: socket.socket) -> None:
    """Bound each read and write of a plain socket: those of a whole request have no other bound."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", SILENCE_S, 0))


def bound_tls(config: Any) -> None:
    """Bound the same, and the handshake, of the sockets that Gunicorn will make for TLS with `config`."""
    made = config.ssl_context

    def ssl_context(config: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        context: ssl.SSLContext = made(config, default)
        context.sslsocket_class = TLSSocket
        return context

    config.set("ssl_context", ssl_context)


def keep_out_of_the_log() -> None:
    """Gunicorn's log says at level debug that a client was silent, and not with a traceback among the errors."""
    log.addFilter(_is_no_silence)


def _is_no_silence(record: logging.LogRecord) -> bool:
    silent = record.exc_info is not None and isinstance(record.exc_info[1], BlockingIOError | Silence)
    if silent:
        log.debug("a client was silent in the middle of a request")
    return not silent


def _or_silence(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def bounded(*args: Any) -> Any:
        try:
            return method(*args)
        except TimeoutError as error:
            raise Silence(*error.args) from None

    return bounded


_send = _or_silence(ssl.SSLSocket.send)


class TLSSocket(ssl.SSLSocket):
    """Waits no longer than that where it would for ever: ssl heeds Python's time-outs alone, not the socket's own."""

    def settimeout(self, value: float | None) -> None:
        """Bound each operation; None is SILENCE_S."""
        super().settimeout(SILENCE_S if value is None else value)

    def setblocking(self, flag: bool) -> None:
        """Wait, for SILENCE_S, or not."""
        self.settimeout(None if flag else 0.0)

    do_handshake = _or_silence(ssl.SSLSocket.do_handshake)
    read = _or_silence(ssl.SSLSocket.read)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send some of it: ssl writes all that it is given under one time-out, which is no silence of a slow reader."""
        return int(_send(self, memoryview(data)[:RECORD_BYTES], flags))
