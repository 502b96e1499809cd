"""Where sequences lie in a flat batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.models.text.batch import pack

CPU = torch.device("cpu")


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), first=st.integers(0, 3))
def test_layout_agrees_with_plain_loops(lengths: list[int], first: int) -> None:
    total = sum(lengths)
    batch = pack(np.arange(total, dtype=np.int32) + first, np.array(lengths), CPU, first)
    layout = batch.layout
    assert batch.ids.tolist() == list(range(first, first + total))
    assert batch.positions.tolist() == [first + i for n in lengths for i in range(n)]
    assert layout.offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert (layout.items, layout.longest) == (len(lengths), max(lengths))
    cells = [i * max(lengths) + j for i, n in enumerate(lengths) for j in range(n)]
    assert layout.cells.tolist() == cells
    seen: list[int] = []
    for length, rows in layout.by_length:
        starts = [sum(lengths[:i]) for i, n in enumerate(lengths) if n == length]
        taken = torch.arange(total)[rows].tolist()
        assert taken == [s + j for s in starts for j in range(length)]
        seen += taken
    assert sorted(seen) == list(range(total))


def test_types_on_the_device() -> None:
    batch = pack(np.zeros(3, np.int32), np.array([1, 2]), CPU)
    assert (batch.ids.dtype, batch.positions.dtype) == (torch.int64, torch.int64)
    assert batch.layout.offsets.dtype == torch.int32
