"""Token-tiled attention in Triton: one program takes 64 consecutive tokens of one head, whatever sequences they are of.

Row t attends to the keys lo[t] ≤ j < hi[t], so the grid depends on the number of tokens alone and a CUDA graph of it serves
every mix of lengths. Import only where Triton runs (CUDA builds of torch bring it).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from gpu_server.models.text.triton_support import early

LOG2E = 1.4426950408889634
NO_REACH = 1 << 30


@triton.jit  # type: ignore[untyped-decorator]
def _attend_tile(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, lo_ptr, hi_ptr,
    tokens, q_token, q_head, k_token, k_head, v_token, v_head, out_token, out_head, scale, reach,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    head = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = row < tokens
    in_dim = column < DIM
    # Padding has no keys; its large `lo` is a sentinel that the clamp below keeps out of the loop's bounds.
    lo = tl.load(lo_ptr + row, mask=inside, other=2147483647)
    hi = tl.load(hi_ptr + row, mask=inside, other=0)
    if CAUSAL:
        hi = tl.minimum(hi, row + 1)
    if WINDOW:
        lo = tl.maximum(lo, row - reach)
        hi = tl.minimum(hi, row + reach + 1)
    last = tl.max(hi, 0)
    first = tl.minimum(tl.min(lo, 0), last)
    wide = row.to(tl.int64)
    q = tl.load(
        q_ptr + wide[:, None] * q_token + head * q_head + column[None, :],
        mask=inside[:, None] & in_dim[None, :],
        other=0.0,
    )
    k_base = k_ptr + (head // GROUP) * k_head
    v_base = v_ptr + (head // GROUP) * v_head
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    # Above what stands for an unseen key, so that such a key weighs exp2(-huge) = 0 without a second mask.
    peak = tl.full([ROWS], -1e20, tl.float32)
    for start in range(first, last, KEYS):
        key = start + tl.arange(0, KEYS)
        present = key < last
        place = key.to(tl.int64)
        k = tl.load(
            k_base + place[None, :] * k_token + column[:, None],
            mask=present[None, :] & in_dim[:, None],
            other=0.0,
        )
        v = tl.load(
            v_base + place[:, None] * v_token + column[None, :],
            mask=present[:, None] & in_dim[None, :],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        seen = (key[None, :] >= lo[:, None]) & (key[None, :] < hi[:, None])
        scores = tl.where(seen, scores, -1e30)
        higher = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp2(peak - higher)
        p = tl.exp2(scores - higher[:, None])
        weight = weight * shrink + tl.sum(p, 1)
        total = total * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        peak = higher
    total = total / tl.where(weight > 0, weight, 1.0)[:, None]
    tl.store(
        out_ptr + wide[:, None] * out_token + head * out_head + column[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=inside[:, None] & in_dim[None, :],
    )


def _tiles(tokens: int, dim: int) -> dict[str, Any]:
    """Tile sizes; for full batches 64 × 32 was the fastest of fourteen on an H200 (docs/performance.md)."""
    if dim > 128:
        return {"ROWS": 32, "KEYS": 32, "num_warps": 4, "num_stages": 2}
    if tokens <= 32:
        return {"ROWS": 16, "KEYS": 16, "num_warps": 2, "num_stages": 2}
    return {"ROWS": 64, "KEYS": 32, "num_warps": 4, "num_stages": 3}


@torch.library.custom_op("gpu_server::tiled_attention", mutates_args=())
def tiled_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lo: torch.Tensor,
    hi: torch.Tensor,
    scale: float,
    causal: bool,
    reach: int,
) -> torch.Tensor:
    """Attention of `[tokens, heads, dim]`; k and v may have fewer heads, of which each serves as many of q.

    lo, hi: int32 `[tokens]`, the keys of each token. reach: how far from itself a token sees; NO_REACH for no limit.
    """
    tokens, heads, dim = q.shape
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    tiles = _tiles(tokens, dim)
    _attend_tile[(heads, triton.cdiv(tokens, tiles["ROWS"]))](
        q, k, v, out, lo, hi,
        tokens, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2], scale * LOG2E, reach,
        GROUP=heads // k.shape[1], DIM=dim, WIDTH=max(16, triton.next_power_of_2(dim)), CAUSAL=causal,
        WINDOW=reach < NO_REACH, PRECISION="ieee" if q.dtype == torch.float32 else "tf32", **tiles,
        **early(q.device, tokens),
    )  # fmt: skip
    return out


@tiled_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lo: torch.Tensor,
    hi: torch.Tensor,
    scale: float,
    causal: bool,
    reach: int,
) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)
