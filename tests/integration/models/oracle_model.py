"""A model whose answers say which version gave them; the test writes the version beside a copy of this module."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpu_server import Model

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = json.loads((HERE / "settings.json").read_text())


def wait_for(name: str) -> None:
    """Return once a file is there; an empty name is there already."""
    give_up = time.monotonic() + 30
    while name and not (HERE / name).exists() and time.monotonic() < give_up:
        time.sleep(0.005)


class Oracle(Model):
    """Answers 2x + 1 and its version. settings.json can make it slow or unable to load, or give its example a bad answer."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("i64", ())}
    params: ClassVar[dict[str, Any]] = {"gate": ""}
    max_batch_items = 16

    def load(self, device: torch.device) -> None:
        (HERE / f"loading-{os.getpid()}").touch()
        wait_for(SETTINGS.get("load_gate", ""))
        if SETTINGS.get("bad") == "load":
            raise OSError("weights.bin is truncated")
        if SETTINGS.get("memory"):
            self.held = (HERE / "memory").open("w")
            try:
                fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise torch.OutOfMemoryError("CUDA out of memory") from None

    def forward(self, batch: Mapping[str, torch.Tensor], gate: str = "") -> dict[str, Any]:
        wait_for(gate)
        x = batch["x"]
        bad = SETTINGS.get("bad") if x[0] == -1 else ""
        if bad == "exit":
            os._exit(9)
        score = x.float() * (float("nan") if bad == "nan" else 1.0)
        return {"y": x * 2 + 1, "v": torch.full_like(x, SETTINGS["version"]), "score": score}

    def example(self) -> dict[str, Any]:
        return {"x": -1}


class Other(Oracle):
    """The same under another name."""


class NoRoomEver(Oracle):
    """Fits into no memory."""

    def load(self, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")
