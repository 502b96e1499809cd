"""Texts that are being tokenised: bounded in bytes, and found when their time is over."""

from __future__ import annotations

import math
from concurrent.futures import Future

import pytest

from gpu_server.daemon.text_ledger import TextLedger
from gpu_server.errors import Overloaded
from gpu_server.sending import AHEAD
from gpu_server.wire import VERSION, RequestHeader


def header(number: int) -> RequestHeader:
    return RequestHeader(v=VERSION, id=b"%d" % number, op="infer")


def filled(*deadlines: float, size: int = 10) -> TextLedger:
    ledger = TextLedger(max_request_bytes=25)
    for number, deadline in enumerate(deadlines):
        ledger.add((b"peer", b"%d" % number), header(number), deadline, size, Future())
    return ledger


def test_bytes_are_free_again_however_a_text_leaves() -> None:
    ledger = TextLedger(max_request_bytes=25)
    taken, stopped = header(1), header(2)
    ledger.add((b"peer", b"1"), taken, 5.0, 40, Future())
    ledger.add((b"peer", b"2"), stopped, 5.0, 60, Future())
    with pytest.raises(Overloaded, match="4 × max_request_bytes = 100"):
        ledger.check_room(b"other", 1, 1)
    assert ledger.take((b"peer", b"1"), taken) == 5.0
    ledger.check_room(b"other", 40, 1)
    with pytest.raises(Overloaded):
        ledger.check_room(b"other", 41, 1)
    assert ledger.stop((b"peer", b"2")) is stopped
    ledger.check_room(b"peer", 100, 1)
    with pytest.raises(Overloaded):
        ledger.check_room(b"peer", 101, 1)


def test_one_sender_leaves_room_for_the_next() -> None:
    ledger = filled(*[5.0] * 7)
    with pytest.raises(Overloaded, match="this sender holds 70"):
        ledger.check_room(b"peer", 10, 1)
    ledger.check_room(b"other", 10, 1)


def test_what_one_call_sends_ahead_has_room_even_as_bulk() -> None:
    ledger = TextLedger(max_request_bytes=20)
    for number in range(AHEAD):
        ledger.check_room(b"peer", 10, 2)
        ledger.add((b"peer", b"%d" % number), header(number), 5.0, 10, Future())
    with pytest.raises(Overloaded):
        ledger.check_room(b"peer", 10, 2)


def test_each_is_due_at_its_deadline() -> None:
    ledger = filled(30.0, 10.0, 20.0)
    assert ledger.next_deadline() == 10.0
    assert ledger.expired(9.9) == []
    assert ledger.next_deadline() == 10.0
    assert ledger.expired(20.0) == [(b"peer", b"1"), (b"peer", b"2")]
    for key in ledger.expired(20.0):
        ledger.stop(key)
    assert ledger.next_deadline() == 30.0


def test_nothing_is_due_for_long_once_all_have_left() -> None:
    ledger = filled(10.0)
    ledger.stop((b"peer", b"0"))
    assert ledger.expired(10.0) == []
    assert ledger.next_deadline() == math.inf
