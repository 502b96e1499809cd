"""An oracle that can be made to fail: what it answers is a function of the ids, and some ids break it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpu_server import Model

RAISES, NOT_FINITE, MISCOUNTS, HANGS = 1001, 1002, 1003, 1004
MEMORY_TOKENS = 300
"""A forward on more tokens than this has not enough memory."""


def oracle(ids: list[int]) -> int:
    """What one row must be answered: another number for other ids, or the same ids in another order."""
    total = len(ids)
    for place, value in enumerate(ids, 1):
        total = (total * 48271 + place * value) % 2147483647
    return total


class Chaos(Model):
    """Answers each row's `oracle`, and the version that stood in `settings.json` when it was loaded."""

    inputs: ClassVar[dict[str, Any]] = {"ids": ("i32", (-1,))}
    cost = "ids"
    check_finite = True
    max_batch_tokens = 512
    max_batch_items = 64

    def load(self, device: torch.device) -> None:
        settings = json.loads((Path(__file__).parent / "settings.json").read_text())
        self.version = settings["version"]
        if settings.get("bad"):
            raise OSError("weights.bin is truncated")

    def forward(self, batch: Mapping[str, list[torch.Tensor]]) -> dict[str, Any]:
        rows = [row.tolist() for row in batch["ids"]]
        tokens = sum(map(len, rows))
        seen = {value for row in rows for value in row}
        if HANGS in seen:
            time.sleep(3600)
        if RAISES in seen:
            raise ValueError("poisoned")
        if tokens > MEMORY_TOKENS:
            raise torch.OutOfMemoryError(f"CUDA out of memory at {tokens} tokens")
        time.sleep(0.0005 + tokens * 5e-6)
        answers = [oracle(row) for row in rows]
        score = [float("nan") if NOT_FINITE in row else 1.0 for row in rows]
        short = 1 if MISCOUNTS in seen else 0
        return {
            "y": torch.tensor(answers[short:], dtype=torch.int64),
            "v": torch.full((len(rows) - short,), self.version, dtype=torch.int64),
            "score": torch.tensor(score[short:]),
        }

    def example(self) -> dict[str, Any]:
        return {"ids": [1, 2, 3]}
