"""Answers of servers of every kind, in pieces of every size."""

from __future__ import annotations

import pytest

from gpu_server.bench.answer import LONGEST_HEAD, Answer, BadAnswer

OK = b"HTTP/1.1 200 OK\r\n"
COMPLETE = {
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", 200, True),
    "no body": (OK + b"content-length: 0\r\n\r\n", 200, True),
    "no content": (b"HTTP/1.1 204 No Content\r\nserver: x\r\n\r\n", 204, True),
    "asked to close": (b"HTTP/1.1 429 Too Many\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n{}", 429, False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, False),
    "HTTP/1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}", 200, True),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", 200, True),
    "trailers": (OK + b"transfer-encoding: gzip, chunked\r\n\r\n1\r\n\n\r\n0\r\nA: b\r\nC: d\r\n\r\n", 200, True),
    "informed before": (
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 1\r\n\r\nx",
        503,
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
def test_an_answer_is_complete_with_its_last_byte_and_not_before(name: str, size: int) -> None:
    raw, status, keep = COMPLETE[name]
    answer = Answer()
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)]
    assert [answer.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (answer.status, answer.keep_alive) == (status, keep)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    answer = Answer()
    assert not answer.feed(OK + b"\r\nsome")
    assert answer.end()
    assert not answer.keep_alive


@pytest.mark.parametrize("raw", [b"", OK, OK + b"Content-Length: 5\r\n\r\nhell"])
def test_an_early_end_completes_nothing(raw: bytes) -> None:
    answer = Answer()
    assert not answer.feed(raw)
    assert not answer.end()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"x" * (LONGEST_HEAD + 1),
        OK + b"Content-Length: 1\r\n\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\nnope\r\n",
    ],
)
def test_what_is_no_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(BadAnswer):
        Answer().feed(raw)
