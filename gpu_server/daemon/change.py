"""One change of the models, from the wish to its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gpu_server.errors import RemoteError
from gpu_server.wire.events import ModelSpec

Models = tuple[ModelSpec, ...]
Phase = Literal["draining", "ending", "loading", "retiring"]


@dataclass
class Change:
    """A wished set of models. alone: the new engine was started without the old one beside it.

    phase: what it waits for. With room for both engines: the new one loads, the old one retires. Without: the old one drains
    and ends, the new one loads.
    """

    models: Models
    done: Callable[[RemoteError | None], None]
    started: float
    phase: Phase = "loading"
    phase_since: float = 0.0
    alone: bool = False
