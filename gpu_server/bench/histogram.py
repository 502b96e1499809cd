"""Latencies in buckets half a percent wide: memory stays small however long a run is, and processes add up exactly."""

from __future__ import annotations

import math

import msgspec

FLOOR_S = 1e-6
BUCKETS_PER_E = 200


class Histogram(msgspec.Struct):
    """Counts by bucket; the largest value and the sum are kept exactly."""

    buckets: dict[int, int] = {}
    sum_s: float = 0.0
    max_s: float = 0.0

    def add(self, value_s: float) -> None:
        """Count one value; anything below a microsecond is a microsecond."""
        bucket = math.ceil(math.log(value_s / FLOOR_S) * BUCKETS_PER_E) if value_s > FLOOR_S else 0
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.sum_s += value_s
        self.max_s = max(self.max_s, value_s)

    def merge(self, other: Histogram) -> None:
        """Add what another process counted."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.sum_s += other.sum_s
        self.max_s = max(self.max_s, other.max_s)

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.buckets.values())

    @property
    def mean_s(self) -> float:
        """Their mean; 0 without values."""
        return self.sum_s / count if (count := self.count) else 0.0

    def quantile(self, share: float) -> float:
        """The smallest bucket edge that at least `share` of the values are at or below; 0 without values."""
        rank = max(1, math.ceil(share * self.count))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                return min(self.max_s, FLOOR_S * math.exp(bucket / BUCKETS_PER_E))
        return 0.0
