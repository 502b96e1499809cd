"""Rows from the device into the host's pinned memory, in one Triton kernel. Import only where Triton runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from gpu_server.models.text.triton_support import early

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _land_item(  # type: ignore[no-untyped-def]
    rows_ptr, offsets_ptr, landing_ptr, stride, size, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    item = tl.program_id(0)
    # Padding has no tokens; its rows would only take up the bus.
    if tl.load(offsets_ptr + item) < tl.load(offsets_ptr + item + 1):
        for first in range(0, size, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside = column < size
            row = tl.load(rows_ptr + item.to(tl.int64) * stride + column, mask=inside)
            tl.store(landing_ptr + item.to(tl.int64) * size + column, row.to(tl.float32), mask=inside)


def land(rows: torch.Tensor, offsets: torch.Tensor, landing: torch.Tensor) -> None:
    """Write the rows `[items, size]` of items that have tokens to pinned `landing`, float32 and of the same shape."""
    items, size = rows.shape
    _land_item[(items,)](
        rows, offsets, landing, rows.stride(0), size,
        BLOCK=min(_BLOCK, triton.next_power_of_2(size)), num_warps=4, **early(rows.device, items),
    )  # fmt: skip
