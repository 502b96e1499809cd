"""The table of a connection's calls: what goes in, what is swept out, and who learns of a cancellation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpu_server.errors import InvalidRequest, Unavailable
from gpu_server.pending import Call, Pending, Reply
from gpu_server.wire import ReplyHeader, RequestHeader


class Wire:
    """A socket that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def send_multipart(self, frames: object, flags: int) -> None:
        self.sent.append(frames)


def added(pending: Pending, timeout_s: float = 60.0) -> Call:
    return pending.add(RequestHeader(v=1, id=b"-", op="infer"), None, timeout_s)


def test_an_outcome_after_the_end_is_late_whatever_the_calls_number() -> None:
    pending = Pending()
    calls = [added(pending) for _ in range(300)]
    for call in calls:
        for _ in range(2):
            pending.finish(call.header.id, Reply(ReplyHeader(v=1, id=call.header.id), {}))
        assert call.future.done()
    assert (pending.late, len(pending)) == (300, 0)
    pending.finish(b"c" + calls[0].header.id, Reply(ReplyHeader(v=1, id=b"c"), {}))
    assert pending.late == 300, "a reply to a cancel is nobody's"


def test_what_was_cancelled_as_it_was_taken_to_be_sent_is_not_sent() -> None:
    """Its caller may have looked whether it was sent a moment before, and then tells the daemon nothing."""
    wire, call = Wire(), added(Pending())
    call.future.cancel()
    call.send(wire)
    assert wire.sent == []


def test_what_is_sent_says_so_before_it_goes() -> None:
    wire, call = Wire(), added(Pending())
    call.send(wire)
    assert (len(wire.sent), call.sent) == (1, True)


def test_each_call_gets_an_error_of_its_own() -> None:
    pending = Pending()
    calls = [added(pending) for _ in range(2)]
    pending.end(Unavailable("gone", {"endpoint": "e"}))
    errors = [call.future.exception(0) for call in calls]
    assert [(type(e), str(e)) for e in errors] == [(Unavailable, "gone")] * 2
    assert errors[0] is not errors[1]
    with pytest.raises(Unavailable, match="gone"):
        added(pending)
    assert len(pending) == 0


def test_only_what_is_picked_fails() -> None:
    pending = Pending()
    kept, lost = added(pending), added(pending)
    lost.sent = True
    pending.fail(Unavailable("lost"), lambda call: call.sent)
    assert (kept.future.done(), lost.future.done()) == (False, True)


def test_the_overdue_are_named_once() -> None:
    pending = Pending()
    late = added(pending, -1)
    added(pending)
    assert [request_id for request_id, _ in pending.overdue()] == [late.header.id]
    assert list(pending.overdue()) == []


def test_what_is_no_number_of_seconds_is_refused_and_leaves_nothing() -> None:
    pending = Pending()
    with pytest.raises(ValueError, match="NaN"):
        added(pending, float("nan"))
    with pytest.raises(InvalidRequest):
        pending.add(RequestHeader(v=1, id=b"-", op="x" * 40, params={"p": "x" * 5000}), None, 1)
    assert (len(pending), pending.due()) == (0, None)


@pytest.mark.parametrize("value", [1 << 70, np.int64(1), "\ud83d"])
def test_what_cannot_be_encoded_is_refused_and_leaves_nothing(value: Any) -> None:
    pending = Pending()
    with pytest.raises(InvalidRequest, match="the request cannot be encoded: "):
        pending.add(RequestHeader(v=1, id=b"-", op="infer", params={"p": value}), None, 1)
    assert (len(pending), pending.due()) == (0, None)
