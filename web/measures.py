"""What a request took, told in whole milliseconds by TEI's x-compute-* headers, and which version of the model answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpu_server.connection import Reply
from gpu_server.wire import Timing
from gpu_server.wire.documents import ModelInfo

MODEL_VERSION = "x-model-version"
"""What the model's files and settings are known by; two of them where the model was reloaded in the middle."""


@dataclass(slots=True)
class Measures:
    """Sizes and times (in seconds) of one request; starts when it is made."""

    characters: int = 0
    tokens: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    versions: dict[str, None] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, replies: Sequence[Reply]) -> None:
        """Count the daemon's part of the time."""
        for reply in replies:
            timing = reply.header.timing or Timing()
            self.queue_s += timing.queue_us / 1e6
            self.compute_s += timing.compute_us / 1e6
            self.versions[reply.header.version] = None

    def headers(self, info: ModelInfo) -> dict[str, str]:
        """The headers of an answer that is ready now."""
        total = str(round((time.monotonic() - self.started) * 1e3))
        return {
            "x-compute-type": "gpu+optimized" if info.device.startswith("cuda") else "cpu",
            "x-compute-time": total,
            "x-compute-characters": str(self.characters),
            "x-compute-tokens": str(self.tokens),
            "x-total-time": total,
            "x-tokenization-time": str(round(self.tokenize_s * 1e3)),
            "x-queue-time": str(round(self.queue_s * 1e3)),
            "x-inference-time": str(round(self.compute_s * 1e3)),
            MODEL_VERSION: ", ".join(self.versions),
        }
