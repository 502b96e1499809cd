"""Lines of single requests: quiet by default, loud for what the engine is to blame for."""

from __future__ import annotations

import logging

import pytest

from gpu_server.daemon import requestlog
from gpu_server.daemon.request import Batch, Request
from gpu_server.errors import EngineCrashed, Overloaded
from gpu_server.wire import Tensor

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def request(traceparent: str = f"00-{TRACE}-00f067aa0ba902b7-01") -> Request:
    return Request(
        peer=b"p",
        id=b"i",
        model="m",
        inputs={"x": Tensor.from_rows([[1]], "i32")},
        params={},
        cumulative=[0, 1],
        priority=1,
        arrived=0.0,
        deadline=1.0,
        group=("m",),
        traceparent=traceparent,
    )


def batch(*requests: Request) -> Batch:
    made = Batch(7, "m", {}, 0.0)
    made.slices = [(one, 0, 1) for one in requests]
    made.items = len(requests)
    return made


def test_only_the_engines_failures_are_told_unasked(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gpu_server.daemon"):
        requestlog.answered(request(), 0.5)
        requestlog.sent(batch(request()))
        requestlog.failed(request(), Overloaded("full"))
        assert caplog.records == []
        requestlog.failed(request(), EngineCrashed("died"))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert (vars(record)["trace"], vars(record)["code"]) == (TRACE, "engine_crashed")


def test_debug_tells_times_and_all_traces_of_a_batch_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "gpu_server.daemon"):
        requestlog.answered(request(""), 0.5)
        requestlog.sent(batch(request(), request(), request(""), request(f"00-{'a' * 32}-{'b' * 16}-00")))
    answered, sent = (vars(record) for record in caplog.records)
    assert answered["total_ms"] == 500.0
    assert "trace" not in answered
    assert sent["batch"] == 7
    assert sent["traces"] == f"{TRACE},{'a' * 32}"
