"""A batch from the host's memory to the device, with each token's position and keys, in one Triton kernel.

Import only where Triton runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    from gpu_server.models.text.graphs import Given, Inputs

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _spread_item(  # type: ignore[no-untyped-def]
    given_ids_ptr, given_types_ptr, given_offsets_ptr,
    ids_ptr, positions_ptr, types_ptr, lo_ptr, hi_ptr, offsets_ptr, items, tokens, first,
    BLOCK: tl.constexpr, TYPES: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0)
    step = tl.arange(0, BLOCK)
    if item < items:
        start = tl.load(given_offsets_ptr + item)
        end = tl.load(given_offsets_ptr + item + 1)
        tl.store(offsets_ptr + item, start)
        tl.store(offsets_ptr + item + 1, end)
        for at in range(start, end, BLOCK):
            token = at + step
            inside = token < end
            tl.store(ids_ptr + token, tl.load(given_ids_ptr + token, mask=inside), mask=inside)
            if TYPES:
                tl.store(types_ptr + token, tl.load(given_types_ptr + token, mask=inside), mask=inside)
            tl.store(positions_ptr + token, token - start + first, mask=inside)
            tl.store(lo_ptr + token, tl.zeros([BLOCK], tl.int32) + start, mask=inside)
            tl.store(hi_ptr + token, tl.zeros([BLOCK], tl.int32) + end, mask=inside)
    else:
        # Padding is a token 0 that sees nothing: its keys run from the end of the batch to 0.
        total = tl.load(given_offsets_ptr + items)
        token = (item - items) * BLOCK + step
        padding = (token >= total) & (token < tokens)
        zero = tl.zeros([BLOCK], tl.int32)
        tl.store(ids_ptr + token, zero, mask=padding)
        tl.store(positions_ptr + token, zero + first, mask=padding)
        tl.store(lo_ptr + token, zero + total, mask=padding)
        tl.store(hi_ptr + token, zero, mask=padding)
        if TYPES:
            tl.store(types_ptr + token, zero, mask=padding)


def spread(given: Given, inputs: Inputs, first_position: int) -> None:
    """Fill `inputs` from what is `given` in pinned memory, and all of the padding behind the last item."""
    ids, positions, types, (lo, hi), offsets = inputs
    tokens, items = len(ids), len(offsets) - 1
    _spread_item[(items + triton.cdiv(tokens, _BLOCK),)](
        given.ids, given.ids if given.types is None else given.types, given.offsets,
        ids, positions, ids if types is None else types, lo, hi, offsets, items, tokens, first_position,
        BLOCK=_BLOCK, TYPES=types is not None,
    )  # fmt: skip
