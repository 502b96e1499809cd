"""Cuts a batch into smaller ones of sequences alike in length, for devices and models that run such better."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_server.models.text.batch import Batch, Layout

Ends = Callable[[NDArray[np.int64]], list[int]]
"""Lengths in descending order to where each piece ends, as numbers of sequences."""

CPU_TOKENS = 2048
"""Beyond this a batch's intermediate results leave a CPU's caches and are mapped anew for each layer."""


def run(batch: Batch, forward: Callable[[Batch], torch.Tensor], ends: Ends) -> torch.Tensor:
    """`forward`'s hidden states of a batch, taken piece by piece from the longest sequences to the shortest."""
    out: torch.Tensor | None = None
    for piece, rows in _pieces(batch, ends):
        hidden = forward(piece)
        if rows is None:
            return hidden
        if out is None:
            out = hidden.new_empty(len(batch.ids), *hidden.shape[1:])
        out[rows] = hidden
    assert out is not None
    return out


def by_tokens(lengths: NDArray[np.int64], limit: int = CPU_TOKENS) -> list[int]:
    """Pieces of at most `limit` tokens, or of one sequence."""
    ends, tokens = [], 0
    for item, length in enumerate(lengths.tolist()):
        if tokens and tokens + length > limit:
            ends.append(item)
            tokens = 0
        tokens += length
    return [*ends, len(lengths)]


def by_padding(lengths: NDArray[np.int64], overhead: int) -> list[int]:
    """Pieces that together cost least when each is padded to its longest sequence; one more costs `overhead` cells."""
    # best[i]: the least cost of the first i sequences. A piece begins where a length does, else it could begin earlier.
    starts = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist()]
    stops = np.array([*starts[1:], len(lengths)])
    best = np.full(len(stops) + 1, np.iinfo(np.int64).max // 2)
    best[0] = 0
    came = np.zeros(len(stops) + 1, np.int64)
    for number, start in enumerate(starts):
        costs = best[number] + overhead + int(lengths[start]) * (stops[number:] - start)
        better = costs < best[number + 1 :]
        best[number + 1 :][better] = costs[better]
        came[number + 1 :][better] = number
    ends: list[int] = []
    at = len(stops)
    while at:
        ends.append(int(stops[at - 1]))
        at = int(came[at])
    return ends[::-1]


def _pieces(batch: Batch, ends: Ends) -> Iterator[tuple[Batch, torch.Tensor | None]]:
    """Each piece, and its tokens' rows in the batch; None for the rows of a piece that is the batch itself."""
    lengths = batch.layout.lengths
    order = np.argsort(-lengths, kind="stable")
    stops = ends(lengths[order])
    if len(stops) == 1 and bool((np.diff(lengths) <= 0).all()):
        yield batch, None
        return
    starts = np.cumsum(lengths) - lengths
    for begin, end in zip([0, *stops], stops, strict=False):
        items = order[begin:end]
        yield _piece(batch, starts[items], lengths[items])


def _piece(batch: Batch, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[Batch, torch.Tensor]:
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
    device = batch.ids.device
    rows = torch.from_numpy(np.repeat(starts, lengths) + within).to(device)
    offsets = torch.from_numpy(np.concatenate(([0], ends)).astype(np.int32)).to(device)
    types = None if batch.types is None else batch.types[rows]
    return Batch(batch.ids[rows], batch.positions[rows], Layout(offsets, lengths), types), rows
