"""The model that the daemon serves for `autoscale.py` and `viewers.py` beside this folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpu_server import Model


class Double(Model):
    """Twice its input; next to no work for the engine."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("i64", ())}

    def load(self, device: Any) -> None:
        """Nothing to load."""

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The doubles."""
        return {"y": batch["x"] * 2}

    def example(self) -> dict[str, Any]:
        """One number."""
        return {"x": 1}
