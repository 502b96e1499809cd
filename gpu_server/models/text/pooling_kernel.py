"""Pooling and normalising in one Triton kernel, a program per item. Import only where Triton runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from gpu_server.models.text.triton_support import early

_TILE = 16_384
_MODES = {"mean": 0, "cls": 1, "lasttoken": 2}


@triton.jit  # type: ignore[untyped-decorator]
def _pool_item(  # type: ignore[no-untyped-def]
    hidden_ptr, offsets_ptr, vectors_ptr, unit_ptr,
    stride, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, MODE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    item = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    inside = column < DIM
    start = tl.load(offsets_ptr + item)
    end = tl.load(offsets_ptr + item + 1)
    count = end - start
    if MODE == 1:
        end = tl.minimum(end, start + 1)
    if MODE == 2:
        start = tl.maximum(start, end - 1)
    total = tl.zeros([WIDTH], tl.float32)
    for first in range(start, end, ROWS):
        row = first + tl.arange(0, ROWS)
        tile = tl.load(
            hidden_ptr + row.to(tl.int64)[:, None] * stride + column[None, :],
            mask=(row < end)[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(tile.to(tl.float32), 0)
    if MODE == 0:
        total = total / tl.maximum(count, 1)
    norm = tl.sqrt(tl.sum(total * total, 0))
    place = item.to(tl.int64) * DIM + column
    tl.store(vectors_ptr + place, total, mask=inside)
    tl.store(unit_ptr + place, total / tl.maximum(norm, 1e-12), mask=inside)


def pool_and_normalize(
    hidden: torch.Tensor, offsets: torch.Tensor, pooling: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pooling.pool_and_normalize`, for contiguous hidden states on CUDA; an item without tokens gives zeros."""
    items, dim = len(offsets) - 1, hidden.shape[1]
    vectors, unit = (torch.empty(items, dim, dtype=torch.float32, device=hidden.device) for _ in range(2))
    width = triton.next_power_of_2(dim)
    _pool_item[(items,)](
        hidden, offsets, vectors, unit, hidden.stride(0),
        DIM=dim, WIDTH=width, ROWS=max(1, min(32, _TILE // width)), MODE=_MODES[pooling], num_warps=8,
        **early(hidden.device, len(hidden)),
    )  # fmt: skip
    return vectors, unit
