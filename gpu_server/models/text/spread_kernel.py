"""Each token's position and keys from the offsets of a batch, in one Triton kernel. Import only where Triton runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from gpu_server.models.text.graphs import Inputs

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _spread_item(  # type: ignore[no-untyped-def]
    offsets_ptr, ids_ptr, positions_ptr, types_ptr, lo_ptr, hi_ptr, items, tokens, first,
    BLOCK: tl.constexpr, TYPES: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    step = tl.arange(0, BLOCK)
    if item < items:
        start = tl.load(offsets_ptr + item)
        end = tl.load(offsets_ptr + item + 1)
        for at in range(start, end, BLOCK):
            token = at + step
            inside = token < end
            tl.store(positions_ptr + token, token - start + first, mask=inside)
            tl.store(lo_ptr + token, tl.zeros([BLOCK], tl.int32) + start, mask=inside)
            tl.store(hi_ptr + token, tl.zeros([BLOCK], tl.int32) + end, mask=inside)
    else:
        # Padding is a token 0 that sees nothing: its keys run from the end of the batch to 0.
        total = tl.load(offsets_ptr + items)
        token = (item - items) * BLOCK + step
        padding = (token >= total) & (token < tokens)
        zero = tl.zeros([BLOCK], tl.int32)
        tl.store(ids_ptr + token, zero, mask=padding)
        tl.store(positions_ptr + token, zero + first, mask=padding)
        tl.store(lo_ptr + token, zero + total, mask=padding)
        tl.store(hi_ptr + token, zero, mask=padding)
        if TYPES:
            tl.store(types_ptr + token, zero, mask=padding)


def spread(inputs: Inputs, first_position: int) -> None:
    """Fill positions and bounds from the offsets, and all of the padding behind the last item."""
    ids, positions, types, (lo, hi), offsets = inputs
    tokens, items = len(ids), len(offsets) - 1
    _spread_item[(items + triton.cdiv(tokens, _BLOCK),)](
        offsets, ids, positions, ids if types is None else types, lo, hi, items, tokens, first_position,
        BLOCK=_BLOCK, TYPES=types is not None,
    )  # fmt: skip
