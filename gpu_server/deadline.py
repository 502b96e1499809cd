"""`Deadline`: the one moment by which a call and every step of it must end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from gpu_server.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of `time.monotonic()`, in seconds."""

    at: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """The deadline of a call that starts now and may take `timeout_s`."""
        return cls(time.monotonic() + timeout_s)

    def left(self, most: float = float("inf")) -> float:
        """Seconds for the next step: what is left, or `most` where that is less. Raises DeadlineExceeded at zero."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be sent")
        return min(left, most)
