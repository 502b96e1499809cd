"""Points of history are differences of the counters, a second apart."""

from __future__ import annotations

import pytest

from gpu_server.daemon.history import KEPT, Moment, Recorder
from gpu_server.daemon.metrics import Metrics
from gpu_server.wire.monitoring import EngineMemory, GPUStatus, WebStatus


def test_a_point_tells_what_happened_since_the_one_before() -> None:
    metrics = Metrics()
    about = metrics.model("m")
    about.answered(0.5, 0.1)
    recorder = Recorder(metrics, now=10.0)
    for _ in range(4):
        about.answered(0.003, 0.001)
    about.ran(4, 100, 0.5)
    about.ran(8, 200, 0.5)
    metrics.failures["m", "overloaded"] += 2
    gpus = (
        GPUStatus(uuid="a", utilization=0.5, power_w=100.0),
        GPUStatus(uuid="b", utilization=1.0, power_w=50.0),
    )
    moment = Moment(3, 5, EngineMemory(reserved=7, limit=9), gpus, WebStatus(workers=2, in_flight=1))
    assert recorder.due == 11.0
    recorder.record(12.0, moment)
    (point,) = recorder.since(0)
    assert (point.number, point.requests, point.failures, point.batches) == (1, 2.0, 1.0, 1.0)
    assert (point.items, point.tokens, point.batch_items, point.busy) == (6.0, 150.0, 6.0, 0.5)
    assert 1.6 < point.p50_ms < point.p99_ms <= 3.2
    assert point.queue_p99_ms == pytest.approx(0.8 + 0.8 * 0.99)
    assert (point.queue_items, point.in_flight, point.memory, point.memory_limit) == (3, 5, 7, 9)
    assert (point.gpu_utilization, point.gpu_power_w) == (0.75, 150.0)
    assert (point.workers, point.http_in_flight, recorder.due) == (2, 1, 13.0)


def test_a_quiet_second_is_a_point_of_zeros() -> None:
    recorder = Recorder(Metrics(), now=0.0)
    recorder.record(1.0, Moment())
    (point,) = recorder.since(0)
    assert (point.requests, point.p99_ms, point.batch_items, point.gpu_utilization) == (0, 0, 0, 0)


def test_only_what_is_new_and_only_so_much() -> None:
    recorder = Recorder(Metrics(), now=0.0)
    for second in range(1, KEPT + 3):
        recorder.record(float(second), Moment())
    assert [point.number for point in recorder.since(KEPT)] == [KEPT + 1, KEPT + 2]
    assert recorder.since(0)[0].number == 3
    # A number from before a restart of the daemon.
    assert len(recorder.since(10_000)) == KEPT
