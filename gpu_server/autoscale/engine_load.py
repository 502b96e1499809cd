"""How busy the engine is and how many HTTP requests the workers hold, from the points that the daemon keeps."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_server.autoscale.controller import Engine
from gpu_server.client import Client
from gpu_server.errors import RemoteError
from gpu_server.wire.monitoring import Point

TIMEOUT_S = 1.0
LOOK_BACK = 3
"""Points that count: some seconds, as a single one may have had no batch."""
SERVING = "ready"


class EngineLoad:
    """Asks the daemon. `held` is the HTTP requests a worker had in flight, 0 where its workers do not report."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.held = 0.0

    def read(self) -> Engine | None:
        """The engine lately; None where no daemon answers in time."""
        try:
            history = self._client.history(timeout_s=TIMEOUT_S)
        except RemoteError:
            self.held = 0.0
            return None
        points = history.points[-LOOK_BACK:]
        self.held = _held(points)
        return engine_of(history.state == SERVING, points)


def engine_of(ready: bool, points: Sequence[Point]) -> Engine:
    """The mean over some points; the longest of their waits."""
    if not points:
        return Engine(ready)
    busy = sum(point.busy for point in points) / len(points)
    batches = sum(point.batches for point in points) / len(points)
    wait_s = max(point.queue_p99_ms for point in points) / 1e3
    return Engine(ready, busy, busy / batches if batches else 0.0, wait_s)


def _held(points: Sequence[Point]) -> float:
    last = points[-1] if points else None
    return last.http_in_flight / last.workers if last is not None and last.workers else 0.0
