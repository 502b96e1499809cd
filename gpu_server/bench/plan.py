"""What a client process is told, and what it tells: one JSON document a line over its standard streams."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

import msgspec

from gpu_server.bench.histogram import Histogram


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. In the copy that a client process gets, connections and rate are its share.

    rate: requests a second (open loop); 0 is a closed loop, where each connection sends as soon as it has an answer.
    body_file: bodies to send as they are; None makes them from `texts`, `words`, `spread`, `model` and the URL's path.
    """

    url: str
    connections: int
    processes: int = 1
    rate: float = 0.0
    duration_s: float = 10.0
    warm_up_s: float = 2.0
    timeout_s: float = 30.0
    texts: int = 1
    words: float = 20.0
    spread: float = 1.3
    model: str = ""
    body_file: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    seed: int = 0

    @property
    def target(self) -> SplitResult:
        """The URL in parts."""
        return urlsplit(self.url)

    def share(self, number: int) -> Plan:
        """What process `number` of `processes` does."""
        connections = self.connections // self.processes + (number < self.connections % self.processes)
        return msgspec.structs.replace(
            self,
            connections=connections,
            rate=self.rate * connections / self.connections,
            seed=self.seed * self.processes + number,
        )


class Ready(msgspec.Struct, frozen=True, tag=True):
    """All connections are open."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The run cannot begin."""

    reason: str


class Start(msgspec.Struct, frozen=True, tag=True):
    """Begin the warm-up at this time of the machine's monotonic clock."""

    at_s: float


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Answers so far, the warm-up's too, and how many of them are not 2xx."""

    answers: int
    errors: int


class Result(msgspec.Struct, frozen=True, tag=True):
    """What one process measured.

    outcomes: latencies by HTTP status, or by the way in which there was no answer. good: 2xx answers that came in the
    window; in an open loop these are not the same requests. offered, waited: requests of an open
    loop that were due in the window, and those that had to wait for a free connection. lag: how late its event loop
    ran a regular timer. late: how long after its due time a request was written, when a connection was free.
    """

    outcomes: dict[str, Histogram]
    good: int
    cpu_s: float
    lag: Histogram
    late: Histogram
    offered: int = 0
    waited: int = 0


Told = Ready | Failed | Progress | Result
