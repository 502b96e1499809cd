"""The last minutes of service, a point a second, for whoever looks in: `gpu-server top` and the dashboard."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import sub

from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.metrics.histogram import Histogram, quantile
from gpu_server.wire.monitoring import SECONDS, EngineMemory, GPUStatus, Point, WebStatus

EVERY_S = 1.0
KEPT = 300


@dataclass(slots=True)
class Moment:
    """What is not counted but read off when a point is made."""

    queue_items: int = 0
    in_flight: int = 0
    memory: EngineMemory = field(default_factory=EngineMemory)
    gpus: tuple[GPUStatus, ...] = ()
    web: WebStatus = field(default_factory=WebStatus)


@dataclass(slots=True)
class _Totals:
    success: int
    failures: int
    batches: int
    items: float
    tokens: float
    busy_s: float
    duration: list[int]
    queue: list[int]


class Recorder:
    """Keeps the points of the last `KEPT` seconds; `record` is to be called when the clock has reached `due`."""

    def __init__(self, metrics: Metrics, now: float) -> None:
        self._metrics = metrics
        self._points: deque[Point] = deque(maxlen=KEPT)
        self._number = 0
        self._last = self._totals()
        self._at = now
        self.due = now + EVERY_S

    def record(self, now: float, moment: Moment) -> None:
        """Add a point for the time since the one before."""
        before, passed = self._last, max(now - self._at, 1e-3)
        totals = self._last = self._totals()
        self._at, self.due = now, now + EVERY_S
        self._number += 1
        duration = list(map(sub, totals.duration, before.duration))
        queue = list(map(sub, totals.queue, before.queue))
        batches = totals.batches - before.batches
        items = totals.items - before.items
        gpus = moment.gpus
        self._points.append(
            Point(
                number=self._number,
                at=round(time.time(), 3),
                requests=round((totals.success - before.success) / passed, 1),
                items=round(items / passed, 1),
                tokens=round((totals.tokens - before.tokens) / passed, 1),
                failures=round((totals.failures - before.failures) / passed, 1),
                batches=round(batches / passed, 1),
                batch_items=round(items / batches, 1) if batches else 0.0,
                p50_ms=_milliseconds(duration, 0.5),
                p95_ms=_milliseconds(duration, 0.95),
                p99_ms=_milliseconds(duration, 0.99),
                queue_p99_ms=_milliseconds(queue, 0.99),
                queue_items=moment.queue_items,
                in_flight=moment.in_flight,
                busy=round(min(1.0, (totals.busy_s - before.busy_s) / passed), 3),
                memory=moment.memory.reserved,
                memory_limit=moment.memory.limit,
                gpu_memory=sum(gpu.memory_used for gpu in gpus),
                gpu_utilization=round(sum(g.utilization for g in gpus) / len(gpus), 3) if gpus else 0.0,
                gpu_power_w=round(sum(gpu.power_w for gpu in gpus), 1),
                workers=moment.web.workers,
                http_in_flight=moment.web.in_flight,
            )
        )

    def since(self, number: int) -> tuple[Point, ...]:
        """The points after that number; all of them for a number that is not this daemon's."""
        after = number if number <= self._number else 0
        return tuple(point for point in self._points if point.number > after)

    def _totals(self) -> _Totals:
        models = self._metrics.models.values()
        return _Totals(
            success=sum(m.success for m in models),
            failures=sum(self._metrics.failures.values()),
            batches=sum(sum(m.batch_items.counts) for m in models),
            items=sum(m.batch_items.total for m in models),
            tokens=sum(m.batch_tokens.total for m in models),
            busy_s=sum(m.inference.total for m in models),
            duration=_summed(m.duration for m in models),
            queue=_summed(m.queue for m in models),
        )


def _summed(histograms: Iterable[Histogram]) -> list[int]:
    whole = Histogram(SECONDS)
    for histogram in histograms:
        whole.add(histogram.counts, 0.0)
    return whole.counts


def _milliseconds(counts: list[int], q: float) -> float:
    return round(quantile(SECONDS, counts, q) * 1e3, 3)
