"""Models for tests of faults in the engine; some note each forward in a file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from gpu_server import Model


def note(*words: object) -> None:
    """Add a line to the file $NOTES."""
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(" ".join(map(str, words)) + "\n")


class Hungry(Model):
    """Answers each row's sum; a forward on more than 400 tokens has not enough memory. Notes each row's first number."""

    inputs: ClassVar[dict[str, Any]] = {"ids": ("i32", (-1,))}
    cost = "ids"
    max_batch_tokens = 4096

    def load(self, device: torch.device) -> None: ...

    def forward(self, batch: Mapping[str, list[torch.Tensor]]) -> torch.Tensor:
        fits = sum(map(len, batch["ids"])) <= 400
        note("ran" if fits else "failed", *(int(row[0]) for row in batch["ids"]))
        if not fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.stack([row.sum() for row in batch["ids"]])


class Slow(Model):
    """Doubles numbers, 50 ms a batch; on −1 it never returns. Notes when each forward began."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("i64", ())}
    max_batch_items = 4

    def load(self, device: torch.device) -> None: ...

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        note(time.time())
        time.sleep(3600 if -1 in batch["x"] else 0.05)
        return batch["x"] * 2


class Wide(Model):
    """Sums rows of 256 kB. A request may name a `gate`, which holds its batch until that file exists."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("f32", (65536,))}
    params: ClassVar[dict[str, Any]] = {"gate": ""}
    max_batch_items = 8

    def load(self, device: torch.device) -> None: ...

    def forward(self, batch: Mapping[str, torch.Tensor], gate: str = "") -> torch.Tensor:
        give_up = time.monotonic() + 30
        while gate and not os.path.exists(gate) and time.monotonic() < give_up:
            time.sleep(0.005)
        return batch["x"].sum(1)


class Vanishing(Model):
    """Answers numbers; on −1 its device is lost, and is not there any more for the next process."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("i64", ())}

    def load(self, device: torch.device) -> None:
        if os.path.getsize(os.environ["NOTES"]):
            raise torch.AcceleratorError("CUDA error: no CUDA-capable device is detected")

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if -1 in batch["x"]:
            note(time.time())
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return batch["x"]


class Forking(Slow):
    """Leaves a process that has all its descriptors and lives on until the file $GATE exists."""

    def load(self, device: torch.device) -> None:
        if os.fork() == 0:
            give_up = time.monotonic() + 60
            while not os.path.exists(os.environ["GATE"]) and time.monotonic() < give_up:
                time.sleep(0.1)
            os._exit(0)
