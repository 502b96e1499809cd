"""Batches cut into pieces: every token once, alike in length, at least cost."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.models.text import pieces
from gpu_server.models.text.batch import Batch, pack

CPU = torch.device("cpu")
some_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def cost(lengths: list[int], ends: list[int], overhead: int) -> int:
    return sum(lengths[a] * (b - a) + overhead for a, b in itertools.pairwise([0, *ends]))


@settings(max_examples=60)
@given(lengths=some_lengths, overhead=st.integers(0, 20))
def test_padding_costs_least(lengths: list[int], overhead: int) -> None:
    lengths = sorted(lengths, reverse=True)
    cuts = range(1, len(lengths))
    every = itertools.chain.from_iterable(itertools.combinations(cuts, n) for n in range(len(lengths)))
    least = min(cost(lengths, [*ends, len(lengths)], overhead) for ends in every)
    ends = pieces.by_padding(np.array(lengths), overhead)
    assert ends[-1] == len(lengths)
    assert cost(lengths, ends, overhead) == least


@settings(max_examples=60)
@given(lengths=some_lengths, limit=st.integers(1, 30))
def test_pieces_hold_as_many_tokens_as_they_may(lengths: list[int], limit: int) -> None:
    ends = pieces.by_tokens(np.array(lengths), limit)
    assert ends[-1] == len(lengths)
    for a, b in itertools.pairwise([0, *ends]):
        assert b - a == 1 or sum(lengths[a:b]) <= limit
        assert b == len(lengths) or sum(lengths[a : b + 1]) > limit


@settings(max_examples=60)
@given(lengths=some_lengths, limit=st.integers(1, 30))
def test_each_token_comes_back_to_its_place(lengths: list[int], limit: int) -> None:
    ids = np.arange(sum(lengths), dtype=np.int32)
    batch = pack(ids, np.array(lengths), CPU, 2, ids + 500)
    seen: list[int] = []

    def forward(piece: Batch) -> torch.Tensor:
        assert piece.types is not None
        seen.extend(piece.layout.lengths.tolist())
        assert piece.layout.offsets.tolist() == [0, *np.cumsum(piece.layout.lengths).tolist()]
        return torch.stack([piece.ids, piece.positions, piece.types], 1)

    got = pieces.run(batch, forward, lambda sizes: pieces.by_tokens(sizes, limit))
    assert got.tolist() == torch.stack([batch.ids, batch.positions, batch.types], 1).tolist()  # type: ignore[list-item]
    assert seen == sorted(lengths, reverse=True)
    assert batch.types is not None


def test_a_batch_that_is_one_piece_is_not_copied() -> None:
    batch = pack(np.zeros(6, np.int32), np.array([3, 2, 1]), CPU)
    seen: list[Batch] = []

    def forward(piece: Batch) -> torch.Tensor:
        seen.append(piece)
        return piece.ids

    pieces.run(batch, forward, pieces.by_tokens)
    assert seen == [batch]
