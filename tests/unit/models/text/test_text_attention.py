"""Packed attention against the textbook formula under one dense mask, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gpu_server.models.text.attention import CannotPack, Rule, attend
from gpu_server.models.text.batch import Layout, pack

LENGTHS = np.array([4, 1, 9, 4, 13])
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


class Layer(torch.nn.Module):
    is_causal = False


def layout_on(device: str) -> Layout:
    return pack(np.zeros(LENGTHS.sum(), np.int32), LENGTHS, torch.device(device)).layout


def heads(count: int, dim: int = 16) -> torch.Tensor:
    return torch.randn(1, count, int(LENGTHS.sum()), dim, dtype=torch.float64)


def textbook(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool, window: int | None
) -> torch.Tensor:
    """Softmax attention `[tokens, heads, dim]` with the mask that Transformers' masking_utils describe."""
    item = torch.from_numpy(np.repeat(np.arange(len(LENGTHS)), LENGTHS))
    place = torch.arange(len(item))
    back = place[:, None] - place
    seen = item[:, None] == item
    if causal:
        seen &= back >= 0
    if window is not None:
        seen &= back.abs() < window
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("causal", "window", "kv_heads"), list(itertools.product([False, True], [None, 1, 3, 9, 50], [4, 2]))
)
def test_equals_the_textbook(
    device: str, dtype: torch.dtype, causal: bool, window: int | None, kv_heads: int
) -> None:
    torch.manual_seed(0)
    q, k, v = heads(4), heads(kv_heads), heads(kv_heads)
    sent = [x.to(device, dtype) for x in (q, k, v)]
    got, weights = attend(
        Layer(), *sent, None, scaling=0.3, is_causal=causal, sliding_window=window, layout=layout_on(device)
    )
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    want = textbook(q, k, v, 0.3, causal, window)
    torch.testing.assert_close(got.cpu().double(), want, atol=tolerance, rtol=tolerance)
    assert weights is None


def test_scale_and_causality_default_as_in_transformers() -> None:
    q, k, v = heads(2), heads(2), heads(2)
    layer = Layer()
    layer.is_causal = True
    got, _ = attend(layer, q, k, v, None, layout=layout_on("cpu"))
    torch.testing.assert_close(got, textbook(q, k, v, 0.25, True, None))
    got, _ = attend(torch.nn.Module(), q, k, v, None, layout=layout_on("cpu"))
    torch.testing.assert_close(got, textbook(q, k, v, 0.25, True, None))


def test_values_may_be_narrower_than_keys() -> None:
    q, k, v = heads(2), heads(2), heads(2, dim=8)
    got, _ = attend(Layer(), q, k, v, None, layout=layout_on("cpu"))
    torch.testing.assert_close(got, textbook(q, k, v, 0.25, False, None))


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_it_does_not_do_it_refuses(name: str) -> None:
    q = heads(2)
    with pytest.raises(CannotPack, match=name):
        attend(Layer(), q, q, q, None, layout=layout_on("cpu"), **{name: 1.0})


def test_a_mask_or_a_lost_layout_is_refused() -> None:
    q = heads(2)
    with pytest.raises(CannotPack):
        attend(Layer(), q, q, q, torch.ones(1), layout=layout_on("cpu"))
    with pytest.raises(CannotPack):
        attend(Layer(), q, q, q, None)


def test_no_window_where_it_leaves_nothing_out() -> None:
    assert Rule(1.0, True, 4).window(5, torch.device("cpu")) is None
    window = Rule(1.0, False, 1).window(3, torch.device("cpu"))
    assert window is not None
    assert window.tolist() == [[True, True, False], [True, True, True], [False, True, True]]
