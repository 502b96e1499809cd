"""Models that break a CUDA device for real when an input says so; on a CPU they end as the engine would see it end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from gpu_server import Model

ROOM_MIB = 2048
"""What `Hungry` leaves free of the device's memory; a number of a row takes a MiB of it while the forward runs."""
TABLE = 1000
"""Entries of `Lookup`'s table."""


class Hungry(Model):
    """Answers each row by its numbers and their places. The device is full but for `ROOM_MIB`, so large batches do not fit.

    crowded: batches of several rows that did not fit so far. free: with `settle`, the device's free bytes once nothing that
    a forward took is held any more.
    """

    inputs: ClassVar[dict[str, Any]] = {"ids": ("i32", (-1,))}
    params: ClassVar[dict[str, Any]] = {"settle": False}
    cost = "ids"
    max_batch_tokens = 8192

    def load(self, device: torch.device) -> None:
        self.device = device
        self.crowded = 0
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            self.ballast = torch.empty(free - (ROOM_MIB << 20), dtype=torch.uint8, device=device)

    def forward(self, batch: Mapping[str, list[torch.Tensor]], settle: bool = False) -> dict[str, Any]:
        rows = batch["ids"]
        try:
            one = self._take(sum(map(len, rows)))
        except torch.OutOfMemoryError:
            self.crowded += len(rows) > 1
            raise
        answers = torch.stack([_weighted(row) for row in rows])
        free = self._settled() if settle else 0
        return {
            "y": answers * one,
            "crowded": torch.full((len(rows),), self.crowded),
            "free": torch.full((len(rows),), free),
        }

    def example(self) -> dict[str, Any]:
        return {"ids": [1, 2, 3]}

    def _take(self, mib: int) -> torch.Tensor:
        """Fill so much memory, and give a 1 that was read from it."""
        if self.device.type != "cuda":
            if mib > ROOM_MIB:
                raise torch.OutOfMemoryError(f"CUDA out of memory: {mib} of {ROOM_MIB} MiB")
            return torch.ones((), dtype=torch.int64)
        # In two parts: where the second does not fit, the error's traceback still holds the first.
        first = torch.ones(mib << 19, dtype=torch.uint8, device=self.device)
        second = torch.ones(mib << 19, dtype=torch.uint8, device=self.device)
        return (first[-1] * second[-1]).long()

    def _settled(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]


def _weighted(row: torch.Tensor) -> torch.Tensor:
    places = torch.arange(1, len(row) + 1, device=row.device)
    return (row.long() * places).sum() + len(row)


class Lookup(Model):
    """Answers 3x + 1 out of a table; a number that is not in it is an index out of range inside a kernel."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("i64", ())}
    max_batch_items = 64

    def load(self, device: torch.device) -> None:
        self.table = torch.arange(TABLE, device=device) * 3 + 1

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        x = batch["x"]
        if x.device.type != "cuda" and int(x.max()) >= TABLE:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return {"y": self.table[x]}

    def example(self) -> dict[str, Any]:
        return {"x": 1}


class Spin(Model):
    """Answers 2x + 1; for a negative number a kernel spins for ever first."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("i64", ())}
    max_batch_items = 64

    def load(self, device: torch.device) -> None:
        self.two = torch.tensor(2, device=device)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        x = batch["x"]
        if int(x.min()) < 0:
            if x.device.type == "cuda":
                torch.cuda._sleep(1 << 62)
            else:
                time.sleep(3600)
        return {"y": x * self.two + 1}

    def example(self) -> dict[str, Any]:
        return {"x": 1}
