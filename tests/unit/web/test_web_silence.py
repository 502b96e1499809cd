"""A client's silence: the bound that its socket gets, and the line that the log does not write."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from collections.abc import Iterator

import pytest
from gunicorn import glogging
from gunicorn.config import Config

from web import silence, weblog


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    log = silence.log
    before = (list(log.handlers), list(log.filters), log.level, log.propagate)
    yield
    log.handlers, log.filters, level, log.propagate = before
    log.setLevel(level)


@pytest.mark.parametrize("kind", [glogging.Logger, weblog.Logger])
def test_a_silent_client_is_no_error(kind: type[glogging.Logger], capsys: pytest.CaptureFixture[str]) -> None:
    silence.keep_out_of_the_log()
    log = kind(Config())
    for error in (
        BlockingIOError(11, "again"),
        silence.Silence("read"),
        TimeoutError("app"),
        OSError(5, "disk"),
    ):
        try:
            raise error
        except OSError:
            log.exception("Socket error processing request.")
    said = capsys.readouterr().err
    assert said.count("Socket error") == said.count("Traceback") == 2
    assert "TimeoutError: app" in said
    assert "disk" in said


def test_a_silent_client_is_a_line_for_who_looks_closely(capsys: pytest.CaptureFixture[str]) -> None:
    silence.keep_out_of_the_log()
    log = weblog.Logger(Config())
    silence.log.setLevel(logging.DEBUG)
    try:
        raise BlockingIOError
    except BlockingIOError:
        log.exception("Socket error processing request.")
    assert "a client was silent" in capsys.readouterr().err


@pytest.mark.parametrize("option", [socket.SO_RCVTIMEO, socket.SO_SNDTIMEO])
def test_reads_and_writes_are_bounded(option: int) -> None:
    one, other = socket.socketpair()
    with one, other:
        silence.bound(one)
        assert struct.unpack("@ll", one.getsockopt(socket.SOL_SOCKET, option, 16)) == (silence.SILENCE_S, 0)
        assert one.gettimeout() is None


def test_a_handshake_that_stops_in_the_middle_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENCE_S", 0.05)
    config = Config()
    silence.bound_tls(config)
    context = config.ssl_context(config, lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    server, client = socket.socketpair()
    client.sendall(b"\x16\x03\x01")
    with client, context.wrap_socket(server, server_side=True, do_handshake_on_connect=False) as tls:
        tls.setblocking(False)
        assert tls.gettimeout() == 0
        tls.setblocking(True)
        with pytest.raises(silence.Silence, match="handshake"):
            tls.do_handshake()
        tls.settimeout(2)
        assert tls.gettimeout() == 2
