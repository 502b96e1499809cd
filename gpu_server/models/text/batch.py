"""A batch of token sequences laid end to end, and where each of them lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """Where each sequence lies in a flat batch.

    offsets: int32 `[items + 1]` on the device, from 0. lengths: tokens of each item, on the host.
    """

    offsets: torch.Tensor
    lengths: NDArray[np.int64]

    @property
    def items(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.lengths.max())

    @cached_property
    def cells(self) -> torch.Tensor:
        """int64 `[tokens]`: each token's place in a padded batch `[items × longest]`."""
        starts = np.arange(self.items) * self.longest
        return self._to_device(np.repeat(starts, self.lengths) + token_positions(self.lengths))

    @cached_property
    def by_length(self) -> list[tuple[int, torch.Tensor]]:
        """(length, int64 rows `[sequences of that length × length]`) for each length that occurs."""
        starts = np.cumsum(self.lengths) - self.lengths
        groups = []
        for length in np.unique(self.lengths):
            rows = starts[self.lengths == length][:, None] + np.arange(length)
            groups.append((int(length), self._to_device(rows.ravel())))
        return groups

    def _to_device(self, indices: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(indices).to(self.offsets.device)


@dataclass(frozen=True)
class Batch:
    """Token ids and positions of all sequences end to end, int64 `[tokens]`, and their layout."""

    ids: torch.Tensor
    positions: torch.Tensor
    layout: Layout


def token_positions(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2 … anew for each sequence, end to end."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def pack(
    ids: NDArray[np.int32], lengths: NDArray[np.int64], device: torch.device, first_position: int = 0
) -> Batch:
    """Move sequences to `device` in one copy; positions count from `first_position` in each of them."""
    tokens = len(ids)
    host = torch.empty(2 * tokens + len(lengths) + 1, dtype=torch.int32, pin_memory=device.type == "cuda")
    view = host.numpy()
    view[:tokens] = ids
    view[tokens : 2 * tokens] = token_positions(lengths) + first_position
    view[2 * tokens] = 0
    np.cumsum(lengths, out=view[2 * tokens + 1 :])
    moved = host.to(device, non_blocking=True)
    wide = moved[: 2 * tokens].long()
    return Batch(wide[:tokens], wide[tokens:], Layout(moved[2 * tokens :], lengths))
