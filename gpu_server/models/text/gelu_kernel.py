"""A linear layer and the exact GELU in one Triton kernel; cuBLAS has the tanh form only. Import only where Triton runs."""

from __future__ import annotations

from functools import cache
from math import ceil
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.nn.functional import gelu, linear
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from gpu_server.models.text.triton_support import early


class _Tile(NamedTuple):
    """How the product is cut up: ROWS × COLUMNS of the result by DEPTH of the sum, `halves` stores a tile."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    halves: int = 1


@triton.jit
def _gelu(v):  # type: ignore[no-untyped-def]
    """x·Φ(x) as max(x, 0) − |x|·Φ(−|x|), log2 Φ(−a) by a polynomial: within 5e-7, at a third of erf's cost."""
    a = tl.abs(v)
    p = 0.0070845573 - 0.00047330931 * a
    p = -0.051827382 + p * a
    p = -0.45999244 + p * a
    p = -1.1507878 + p * a
    p = -1.0000377 + p * a
    return tl.maximum(v, 0.0) - a * tl.exp2(p)


@triton.jit  # type: ignore[untyped-decorator]
def _linear_gelu(  # type: ignore[no-untyped-def]
    x, weight, bias, out, tokens, width, size, programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, HALVES: tl.constexpr, GROUP: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    high, wide, deep = tl.cdiv(tokens, ROWS), tl.cdiv(width, COLUMNS), tl.cdiv(size, DEPTH)
    # Tiles go in groups of GROUP rows, so that those that run together share what they read.
    group_tiles = GROUP * wide
    for tile in tl.range(tl.program_id(0), high * wide, programs, flatten=True):
        group = tile // group_tiles
        group_rows = tl.minimum(high - group * GROUP, GROUP)
        row = (group * GROUP + (tile % group_tiles) % group_rows) * ROWS
        column = (tile % group_tiles) // group_rows * COLUMNS
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for step in range(deep):
            total = tl.dot(x.load([row, step * DEPTH]), weight.load([column, step * DEPTH]).T, total)
        if HALVES == 2:
            half: tl.constexpr = COLUMNS // 2
            left, right = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, half)), (0, 2, 1)))
            place = column + tl.arange(0, half)
            left = _gelu(left + tl.load(bias + place).to(tl.float32)[None, :])
            out.store([row, column], left.to(out.dtype))
            right = _gelu(right + tl.load(bias + half + place).to(tl.float32)[None, :])
            out.store([row, column + half], right.to(out.dtype))
        else:
            shift = tl.load(bias + column + tl.arange(0, COLUMNS)).to(tl.float32)[None, :]
            out.store([row, column], _gelu(total + shift).to(out.dtype))


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`gelu(x @ weight.T + bias)` of half-precision x `[tokens, size]` and weight `[width, size]`, both contiguous."""
    (tokens, size), width = x.shape, len(weight)
    tile = _tile(tokens, width, _processors(x.device))
    if size % tile.depth or width % tile.columns:
        return gelu(linear(x, weight, bias))
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    run(tile, x, weight, bias, out)
    return out


def run(tile: _Tile, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor) -> None:
    """Launch one kernel that fills `out`."""
    (tokens, size), width = x.shape, len(weight)
    tiles = _tiles(tile, tokens, width)
    programs = min(tiles, _processors(x.device)) if tile.halves == 2 else tiles
    _linear_gelu[(programs,)](
        TensorDescriptor.from_tensor(x, [tile.rows, tile.depth]),
        TensorDescriptor.from_tensor(weight, [tile.columns, tile.depth]),
        bias,
        TensorDescriptor.from_tensor(out, [tile.rows, tile.columns // tile.halves]),
        tokens, width, size, programs,
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, HALVES=tile.halves, GROUP=8,
        num_warps=tile.warps, num_stages=tile.stages, **early(x.device, tokens),
    )  # fmt: skip


def _tile(tokens: int, width: int, processors: int) -> _Tile:
    """The fastest found on an H200 for BERT's shapes, within 10 % (docs/performance.md)."""
    if tokens <= 32:
        return _Tile(16, 32, 128, 4, 4)
    if tokens <= 128:
        return _Tile(64, 32, 128, 4, 4)
    if tokens <= 256:
        return _Tile(64, 64, 128, 4, 3)
    large, small = _Tile(128, 256, 64, 8, 3, halves=2), _Tile(128, 128, 64, 8, 4, halves=2)
    rounds = _tiles(large, tokens, width) / processors
    if rounds < 0.7:
        return _Tile(128, 64, 64, 4, 4)
    # Two of the small tiles take 5 % longer than a large one, but may leave fewer processors without work at the end.
    small_rounds = ceil(_tiles(small, tokens, width) / processors) / 2 * 1.05
    return large if ceil(rounds) <= small_rounds else small


def _tiles(tile: _Tile, tokens: int, width: int) -> int:
    return ceil(tokens / tile.rows) * ceil(width / tile.columns)


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
