"""The Triton kernels of the fast path against torch in float64. All of it needs CUDA."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, linear
from torch.nn.functional import layer_norm as torch_layer_norm

from gpu_server.models.text.graphs import Given, Inputs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")


def random(*shape: int, dtype: torch.dtype = torch.float16, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device=GPU) * scale).to(dtype)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("tokens", [1, 16, 31, 48, 130, 512, 1000, 1500, 2049, 5000])
@pytest.mark.parametrize(
    ("size", "width"), [(384, 1536), (768, 3072), (1024, 4096), (128, 512), (32, 64), (96, 100)]
)
def test_linear_gelu_is_exact(tokens: int, size: int, width: int) -> None:
    from gpu_server.models.text.gelu_kernel import linear_gelu

    torch.manual_seed(0)
    for dtype, limit in ((torch.float16, 4e-4), (torch.bfloat16, 4e-3)):
        x, weight, bias = (
            random(tokens, size, dtype=dtype),
            random(width, size, dtype=dtype, scale=0.05),
            None,
        )
        bias = random(width, dtype=dtype)
        want = gelu(linear(x.double(), weight.double(), bias.double()))
        assert error(linear_gelu(x, weight, bias), want) < limit


def test_gelu_differs_from_the_tanh_form() -> None:
    from gpu_server.models.text.gelu_kernel import linear_gelu

    x = torch.linspace(-8, 8, 4096, device=GPU).half()[:, None] * torch.eye(1, 64, device=GPU).half()
    weight = torch.zeros(256, 64, device=GPU, dtype=torch.float16)
    weight[:, 0] = 1
    got = linear_gelu(x.contiguous(), weight, torch.zeros(256, device=GPU, dtype=torch.float16))[
        :, 0
    ].double()
    exact, tanh = (gelu(x[:, 0].double(), approximate=form) for form in ("none", "tanh"))
    assert float((got - exact)[exact.abs() < 0.2].abs().max()) < 7e-5
    assert float((tanh - exact).abs().max()) > 4e-4


@pytest.mark.parametrize("size", [32, 96, 384, 768, 1024])
@pytest.mark.parametrize("tokens", [1, 17, 2048, 2051])
def test_layer_norm(size: int, tokens: int) -> None:
    from gpu_server.models.text.norm_kernel import layer_norm

    x, scale, shift = random(tokens, size) + 3, random(size), random(size)
    want = torch_layer_norm(x.double(), (size,), scale.double(), shift.double(), 1e-12)
    assert error(layer_norm(x, scale, shift, 1e-12), want) < 4e-4


@pytest.mark.parametrize("with_types", [False, True])
def test_embed(with_types: bool) -> None:
    from gpu_server.models.text.norm_kernel import embed

    tables = (random(50, 96), random(40, 96), random(2, 96))
    ids, positions, kinds = (torch.randint(0, len(t), (77,), device=GPU, dtype=torch.int32) for t in tables)
    if not with_types:
        kinds = torch.zeros_like(kinds)
    scale, shift = random(96), random(96)
    rows = sum(table[at].double() for table, at in zip(tables, (ids, positions, kinds), strict=True))
    want = torch_layer_norm(rows, (96,), scale.double(), shift.double(), 1e-12)
    got = embed(ids, positions, kinds if with_types else None, tables, scale, shift, 1e-12)
    assert error(got, want) < 4e-4


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [1500, 2, 1030], [16] * 256, [4096]])
@pytest.mark.parametrize("with_types", [False, True])
def test_spread(lengths: list[int], with_types: bool) -> None:
    from gpu_server.models.text.spread_kernel import spread

    tokens, items, total = 4096, 300, sum(lengths)
    ids, positions, kinds, lo, hi = torch.full((5, tokens), 77, dtype=torch.int32, device=GPU)
    ends = np.cumsum(lengths)
    offsets = torch.full((items + 1,), total, dtype=torch.int32)
    offsets[0], offsets[1 : len(lengths) + 1] = 0, torch.from_numpy(ends)
    given = Given(*(rows.pin_memory() for rows in (*torch.randint(0, 99, (2, tokens)).int(), offsets)))
    inputs = Inputs(
        ids, positions, kinds if with_types else None, (lo, hi), torch.empty_like(offsets, device=GPU)
    )
    spread(given if with_types else given._replace(types=None), inputs, 2)
    assert torch.equal(ids[:total].cpu(), given.ids[:total])
    assert (ids[total:] == 0).all()
    assert torch.equal(inputs.offsets.cpu(), offsets)
    if with_types:
        assert given.types is not None
        assert torch.equal(kinds[:total].cpu(), given.types[:total])
    assert (kinds[total:] == (0 if with_types else 77)).all()
    for start, end in itertools.pairwise([0, *ends.tolist()]):
        assert torch.equal(positions[start:end].cpu(), torch.arange(end - start, dtype=torch.int32) + 2)
        assert (lo[start:end] == start).all()
        assert (hi[start:end] == end).all()
    assert (positions[total:] == 2).all()
    assert (lo[total:] == total).all()
    assert (hi[total:] == 0).all()


@pytest.mark.parametrize("size", [1, 384, 1024, 1500])
def test_land(size: int) -> None:
    from gpu_server.models.text.landing_kernel import land

    rows = random(40, size)
    offsets = torch.tensor([*range(0, 60, 2), *[58] * 11], dtype=torch.int32, device=GPU)
    landing = torch.full((40, size), 7.0).pin_memory()
    land(rows, offsets, landing)
    torch.cuda.synchronize()
    assert torch.equal(landing[:29], rows[:29].float().cpu())
    assert (landing[29:] == 7).all()
