"""A histogram as plain numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts by bucket; observing costs one bisection."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Count what another histogram of the same bounds has counted."""
        for bucket, count in enumerate(counts):
            self.counts[bucket] += count
        self.total += total

    def cumulative(self) -> list[int]:
        """Counts up to each bound and, last, of all."""
        return list(accumulate(self.counts))


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float:
    """The value below which a part `q` of the counted lie, interpolated within its bucket; 0 with nothing counted.

    What lies beyond the last bound is taken to lie on it.
    """
    rank, below = q * sum(counts), 0
    for bucket, count in enumerate(counts[: len(bounds)]):
        if count and below + count >= rank:
            low = bounds[bucket - 1] if bucket else 0.0
            return low + (bounds[bucket] - low) * (rank - below) / count
        below += count
    return bounds[-1] if any(counts) else 0.0
