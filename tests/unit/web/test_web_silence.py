"""A client's silence: the bound that its socket gets, and the line that the log does not write."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from gunicorn import glogging
from gunicorn.config import Config

from web import silence, weblog

ANSWER_BYTES = 6 << 20
TRIES = 20


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


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_a_reader_that_is_slow_but_alive_gets_all_of_a_large_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try in which the machine, not the reader, was silent shows nothing, and is made again."""
    monkeypatch.setattr(silence, "SILENCE_S", 0.5)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*certificate(tmp_path))
    config = Config()
    silence.bound_tls(config)
    context = config.ssl_context(config, lambda: made)
    for _ in range(TRIES):
        sent, read = answered_slowly(context)
        if sent or read.longest_s < 0.2:
            break
    assert sent
    assert read.size == ANSWER_BYTES
    assert read.took_s > 1.0


def certificate(folder: Path) -> tuple[Path, Path]:
    """A new certificate and its key."""
    key, certified = folder / "key", folder / "certificate"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x")
    command = ["openssl", "req", "-x509", *kind, "-keyout", str(key), "-out", str(certified)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return certified, key


class Read(NamedTuple):
    """What a reader got, the seconds that it took, and the longest time without anything new."""

    size: int
    took_s: float
    longest_s: float


def answered_slowly(context: ssl.SSLContext) -> tuple[bool, Read]:
    """Whether the whole answer could be sent to a slow reader, and what that read."""
    near, far = socket.socketpair()
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with ThreadPoolExecutor(1) as pool, near, far:
        reading = pool.submit(read_slowly, trusting, far, time.monotonic())
        with context.wrap_socket(near, server_side=True, do_handshake_on_connect=False) as tls:
            tls.setblocking(True)
            try:
                tls.sendall(bytes(ANSWER_BYTES))
            except silence.Silence:
                sent = False
            else:
                sent = True
        return sent, reading.result(timeout=60)


def read_slowly(context: ssl.SSLContext, sock: socket.socket, begun: float) -> Read:
    """Read to the end with pauses, far longer in all than one may be."""
    last, size, longest_s = begun, 0, 0.0
    with suppress(OSError), context.wrap_socket(sock) as tls:
        while size < ANSWER_BYTES and (got := tls.recv(1 << 16)):
            size += len(got)
            now = time.monotonic()
            last, longest_s = now, max(longest_s, now - last)
            time.sleep(0.003)
    now = time.monotonic()
    return Read(size, now - begun, max(longest_s, now - last))
