"""Layer norm, and BERT's embeddings with theirs, in one Triton kernel each. Import only where Triton runs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from gpu_server.models.text.triton_support import early

# From here on two rows a program were faster on an H200, below it one (docs/performance.md).
_MANY_TOKENS = 2048


@triton.jit  # type: ignore[untyped-decorator]
def _normalize(x, inside, column, scale_ptr, shift_ptr, eps, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of float32 `x`, zero where not `inside`, to mean 0 and variance 1, scaled and shifted."""
    mean = tl.sum(x, 1) / SIZE
    apart = tl.where(inside, x - mean[:, None], 0.0)
    spread = tl.rsqrt(tl.sum(apart * apart, 1) / SIZE + eps)
    scale = tl.load(scale_ptr + column, mask=column < SIZE, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + column, mask=column < SIZE, other=0.0).to(tl.float32)
    return apart * spread[:, None] * scale[None, :] + shift[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _norm_rows(  # type: ignore[no-untyped-def]
    x_ptr, scale_ptr, shift_ptr, out_ptr, tokens, eps,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row < tokens)[:, None] & (column < SIZE)[None, :]
    place = row.to(tl.int64)[:, None] * SIZE + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    out = _normalize(x, inside, column, scale_ptr, shift_ptr, eps, SIZE)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _embed_token(  # type: ignore[no-untyped-def]
    ids_ptr, positions_ptr, types_ptr, words_ptr, places_ptr, kinds_ptr, scale_ptr, shift_ptr, out_ptr, eps,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, TYPES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0)
    column = tl.arange(0, WIDTH)[None, :]
    inside = column < SIZE
    word = tl.load(ids_ptr + token).to(tl.int64) * SIZE
    place = tl.load(positions_ptr + token).to(tl.int64) * SIZE
    kind = tl.load(types_ptr + token).to(tl.int64) * SIZE if TYPES else 0
    x = tl.load(words_ptr + word + column, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(places_ptr + place + column, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(kinds_ptr + kind + column, mask=inside, other=0.0).to(tl.float32)
    out = _normalize(x, inside, tl.arange(0, WIDTH), scale_ptr, shift_ptr, eps, SIZE)
    tl.store(out_ptr + token.to(tl.int64) * SIZE + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def layer_norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """As torch's, over the rows of contiguous `[tokens, size]`; at full batches two to three times as fast."""
    tokens, size = x.shape
    out = torch.empty_like(x)
    rows = 2 if tokens >= _MANY_TOKENS else 1
    _norm_rows[(triton.cdiv(tokens, rows),)](
        x, scale, shift, out, tokens, eps,
        SIZE=size, WIDTH=triton.next_power_of_2(size), ROWS=rows, num_warps=rows, **early(x.device, tokens),
    )  # fmt: skip
    return out


def embed(
    ids: torch.Tensor,
    positions: torch.Tensor,
    types: torch.Tensor | None,
    tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """`[tokens, size]`: the rows of `tables` (words, positions, token types) that a token names, added and normalised.

    types: None means 0 for every token.
    """
    words, places, kinds = tables
    size = words.shape[1]
    out = torch.empty(len(ids), size, dtype=words.dtype, device=words.device)
    _embed_token[(len(ids),)](
        ids, positions, ids if types is None else types, words, places, kinds, scale, shift, out, eps,
        SIZE=size, WIDTH=triton.next_power_of_2(size), TYPES=types is not None, num_warps=1,
        **early(out.device, len(ids)),
    )  # fmt: skip
    return out
