"""Small models for tests with real processes; what they wait for is a file that the test makes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from gpu_server import Model

GATE_TIMEOUT_S = 30.0


def wait_for(path: str) -> None:
    """Return once a file is there."""
    give_up = time.monotonic() + GATE_TIMEOUT_S
    while not Path(path).exists() and time.monotonic() < give_up:
        time.sleep(0.005)


class Numbers(Model):
    """Answers 2x + 1. A request may name a `gate`, which holds its batch until that file exists."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("i64", ())}
    params: ClassVar[dict[str, Any]] = {"gate": "", "note": ""}
    max_batch_items = 64

    def load(self, device: torch.device) -> None:
        self.two = torch.tensor(2, device=device)

    def forward(self, batch: Mapping[str, torch.Tensor], gate: str = "", note: str = "") -> dict[str, Any]:
        if gate:
            wait_for(gate)
        return {"y": batch["x"] * self.two + 1}

    def example(self) -> dict[str, Any]:
        return {"x": 0}


class Network:
    """An ordinary torch module that knows nothing of gpu_server; the same weights everywhere."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("f32", (4,))}

    def load(self, device: torch.device) -> None:
        torch.manual_seed(0)
        layers = torch.nn.Linear(4, 16), torch.nn.GELU(), torch.nn.Linear(16, 3)
        self.network = torch.nn.Sequential(*layers).to(device).eval()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = self.network(batch["x"])
        return result


class Gated(Numbers):
    """Loads when the file $LOAD_GATE exists, warms up when $WARM_GATE does."""

    def load(self, device: torch.device) -> None:
        wait_for(os.environ["LOAD_GATE"])
        super().load(device)

    def warm_up(self, run: Any) -> None:
        wait_for(os.environ["WARM_GATE"])
        super().warm_up(run)


class Mortal(Numbers):
    """Its process ends on a negative number."""

    def forward(self, batch: Mapping[str, torch.Tensor], gate: str = "", note: str = "") -> dict[str, Any]:
        if (batch["x"] < 0).any():
            os._exit(3)
        return super().forward(batch, gate, note)


class Steady(Numbers):
    """Takes 0.2 s for up to 16 items: what it can do is a matter of sleeping, whatever else the machine has to do."""

    max_batch_items = 16

    def forward(self, batch: Mapping[str, torch.Tensor], gate: str = "", note: str = "") -> dict[str, Any]:
        time.sleep(0.2)
        return super().forward(batch, gate, note)


class Picky(Numbers):
    """Refuses the number 13."""

    def forward(self, batch: Mapping[str, torch.Tensor], gate: str = "", note: str = "") -> dict[str, Any]:
        if 13 in batch["x"]:
            raise ValueError("unlucky")
        return super().forward(batch, gate, note)


class RaisesInLoad(Numbers):
    """Cannot be loaded."""

    def load(self, device: torch.device) -> None:
        raise OSError("weights.bin is truncated\nsecond line")


class RaisesInWarmUp(Numbers):
    """Loads, but its forward does not work."""

    def forward(self, batch: Mapping[str, torch.Tensor], gate: str = "", note: str = "") -> dict[str, Any]:
        raise KeyError("no such layer")


NOT_A_CLASS = "named as a model by mistake"
