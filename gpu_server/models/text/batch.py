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

    def padded(self, flat: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """Rows `[tokens, …]` in their cells of a padded batch `[items, longest, …]`."""
        cells = flat.new_full((self.items * self.longest, *flat.shape[1:]), fill)
        cells[self.cells] = flat
        return cells.view(self.items, self.longest, *flat.shape[1:])

    @cached_property
    def by_length(self) -> list[tuple[int, slice | torch.Tensor]]:
        """(length, rows) for each length that occurs; the rows of sequences that are neighbours are a slice, else int64."""
        starts = np.cumsum(self.lengths) - self.lengths
        groups: list[tuple[int, slice | torch.Tensor]] = []
        for length in np.unique(self.lengths).tolist():
            firsts = starts[self.lengths == length]
            begin, end = int(firsts[0]), int(firsts[-1]) + length
            if end - begin == length * len(firsts):
                groups.append((length, slice(begin, end)))
            else:
                rows = firsts[:, None] + np.arange(length)
                groups.append((length, self._to_device(rows.ravel())))
        return groups

    def _to_device(self, indices: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(indices).to(self.offsets.device)


@dataclass(frozen=True)
class Batch:
    """Token ids, positions and perhaps token types of all sequences end to end, int64 `[tokens]`, and their layout."""

    ids: torch.Tensor
    positions: torch.Tensor
    layout: Layout
    types: torch.Tensor | None = None


def token_positions(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2 … anew for each sequence, end to end."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def has_padding(ids: NDArray[np.int32], first_position: int) -> bool:
    """Whether there is a padding token among ids whose positions count from `first_position`.

    Models that count from there, which is one past that token's id, give it no position of its own.
    """
    return first_position > 0 and bool((ids == first_position - 1).any())


def pack(
    ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
    device: torch.device,
    first_position: int = 0,
    types: NDArray[np.int32] | None = None,
) -> Batch:
    """Move sequences to `device` in one copy; positions count from `first_position` in each of them."""
    tokens = len(ids)
    positions = token_positions(lengths) + first_position
    if has_padding(ids, first_position):
        positions = _past_padding(positions, ids, lengths, first_position - 1)
    columns = [ids, positions, *([] if types is None else [types])]
    wide = tokens * len(columns)
    host = torch.empty(wide + len(lengths) + 1, dtype=torch.int32, pin_memory=device.type == "cuda")
    view = host.numpy()
    for column, values in zip(view[:wide].reshape(-1, tokens), columns, strict=True):
        column[:] = values
    view[wide] = 0
    np.cumsum(lengths, out=view[wide + 1 :])
    moved = host.to(device, non_blocking=True)
    rows = moved[:wide].long().view(-1, tokens)
    layout = Layout(moved[wide:], lengths)
    return Batch(rows[0], rows[1], layout, None if types is None else rows[2])


def _past_padding(
    positions: NDArray[np.int64], ids: NDArray[np.int32], lengths: NDArray[np.int64], pad_id: int
) -> NDArray[np.int64]:
    """Positions as RoBERTa and its kin count them: padding among the tokens is at `pad_id`, and not counted."""
    padding = ids == pad_id
    skipped = np.cumsum(padding)
    before = np.repeat(np.concatenate(([0], skipped))[np.cumsum(lengths) - lengths], lengths)
    return np.where(padding, pad_id, positions - skipped + before)
