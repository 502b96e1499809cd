"""The parts of one HTTP request's time, noted as they end; what exports them is `web.tracing`'s matter."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from gpu_server.connection import Reply

SPANS = "gpu_server.spans"
"""Where a traced request has its `Spans`."""


@dataclass(slots=True)
class Part:
    """One span: its name, begin and end in Unix nanoseconds, and what it tells."""

    name: str
    begun_ns: int
    ended_ns: int
    facts: dict[str, str | int] = field(default_factory=dict)


@dataclass(slots=True)
class Spans:
    """The parts of one request so far."""

    parts: list[Part] = field(default_factory=list)

    def tokenized(self, model: str, seconds: float) -> None:
        """Tokenising took `seconds` and has just ended."""
        now = time.time_ns()
        self.parts.append(Part("tokenize", now - int(seconds * 1e9), now, {"gpu_server.model": model}))

    def answered(self, reply: Reply, begun_ns: int) -> None:
        """The daemon's reply to what was sent at `begun_ns`: by its timing, the wait in the queue and then the forward.

        Where a request rode in several batches both are sums, so the second begins where the first ends and not later.
        """
        timing = reply.header.timing
        if timing is msgspec.UNSET:
            return
        queued = begun_ns + timing.queue_us * 1000
        self.parts.append(Part("queue", begun_ns, queued))
        facts: dict[str, str | int] = {
            "gpu_server.model": reply.header.model,
            "gpu_server.batch_items": timing.batch_items,
            "gpu_server.batch_tokens": timing.batch_tokens,
        }
        self.parts.append(Part("compute", queued, queued + timing.compute_us * 1000, facts))
