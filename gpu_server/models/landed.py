"""Outputs that the device itself writes into the host's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Landed:
    """Rows that a launched batch leaves in pinned memory which a later one overwrites.

    rows: an array of one's own of the same shape and dtype, whose numbers are there after `take`.
    """

    def __init__(self, memory: NDArray[Any]) -> None:
        self.rows = np.empty_like(memory)
        self._memory: NDArray[Any] | None = memory

    def take(self) -> None:
        """Copy the rows, once; wait for the batch before it."""
        if self._memory is not None:
            self.rows[:] = self._memory
            self._memory = None
