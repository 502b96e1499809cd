"""Linear layers by oneDNN: the same numbers, or the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import heads
import numpy as np
import pytest
import torch
from torch import nn

from gpu_server.models.text import encoder, onednn, selfcheck
from gpu_server.models.text.encoder import Encoder

CPU = torch.device("cpu")
LENGTHS = np.array([3, 40, 1, 17, 3, 64, 9])
IDS = np.random.default_rng(7).integers(4, 96, int(LENGTHS.sum()), dtype=np.int32)

pytestmark = pytest.mark.skipif(not onednn.available(), reason="this torch has no oneDNN")


def loaded(folder: Path) -> Encoder:
    made = encoder.load(folder, CPU)
    selfcheck.choose(made, max_length=128)
    return made


def adopt(made: Encoder, rounded: str = "") -> str:
    return onednn.adopt(made, selfcheck.probe(made, 128), rounded=rounded)


def kinds(made: Encoder) -> list[type[nn.Module]]:
    return [type(module) for module in made.model.modules()]


@torch.inference_mode()
def states(made: Encoder) -> torch.Tensor:
    return made(made.pack(IDS, LENGTHS))


@pytest.mark.parametrize(
    ("family", "fused"), [("bert", 2), ("distilbert", 2), ("modernbert", 0), ("qwen3", 2), ("mpnet", 2)]
)
def test_every_linear_layer_gives_the_same(make_model: Callable[..., Path], family: str, fused: int) -> None:
    made = loaded(make_model(family))
    want, linear = states(made), kinds(made).count(nn.Linear)
    assert adopt(made) == "float32"
    assert kinds(made).count(onednn.PackedLinear) == linear
    assert kinds(made).count(nn.Identity) >= fused
    torch.testing.assert_close(states(made), want, atol=1e-5, rtol=1e-5)


def test_bfloat16_products_where_they_are_near_enough(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "multiplies_bfloat16", lambda: True)
    made = loaded(make_model("bert"))
    want = states(made)
    assert adopt(made, "mean") == "bfloat16"
    got = states(made)
    assert got.dtype == torch.float32
    assert not torch.equal(got, want)
    assert torch.cosine_similarity(got, want).min() > 0.999


@pytest.mark.parametrize("limit", [1.1, float("nan")])
def test_float32_products_where_bfloat16_is_too_far_off(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    monkeypatch.setattr(onednn, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(onednn, "BFLOAT16_COSINE", limit)
    assert adopt(loaded(make_model("bert")), "mean") == "float32"


@pytest.mark.parametrize(("pooling", "products"), [("mean", "bfloat16"), ("lasttoken", "float32")])
def test_bfloat16_products_are_judged_by_the_vectors_that_are_served(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, pooling: str, products: str
) -> None:
    monkeypatch.setattr(onednn, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(onednn, "BFLOAT16_COSINE", 0.9998)
    model = heads.loaded(make_model("qwen3", hidden_size=64), pooling=pooling)
    assert model._products == products


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
def test_layers_whose_weights_the_model_takes_itself_are_put_back(
    make_model: Callable[..., Path], family: str
) -> None:
    made = loaded(make_model(family, state_size=4))
    want, before = states(made), kinds(made)
    assert adopt(made) == ""
    assert kinds(made) == before
    assert torch.equal(states(made), want)


def test_layers_that_give_other_numbers_are_put_back(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = loaded(make_model("bert"))
    want, before = states(made), kinds(made)
    monkeypatch.setattr(onednn, "_EPILOGUES", {"GELUActivation": onednn.Epilogue("relu")})
    assert adopt(made) == ""
    assert kinds(made) == before
    assert torch.equal(states(made), want)


def test_an_activation_that_reads_something_else_stays(make_model: Callable[..., Path]) -> None:
    made = loaded(make_model("bert"))
    for layer in made.model.encoder.layer:
        layer.intermediate.intermediate_act_fn.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    want = states(made)
    assert adopt(made) == "float32"
    assert nn.Identity not in kinds(made)
    torch.testing.assert_close(states(made), want, atol=1e-5, rtol=1e-5)


def test_half_precision_is_left_alone(make_model: Callable[..., Path]) -> None:
    made = encoder.load(make_model("bert"), CPU, torch.bfloat16)
    assert adopt(made) == ""


def test_no_tensor_of_a_forward_is_kept(make_model: Callable[..., Path]) -> None:
    made = loaded(make_model("bert"))
    adopt(made)
    states(made)
    rows = next(m for m in made.model.modules() if isinstance(m, onednn.PackedLinear))._rows
    assert rows._of is None


def test_few_sizes_and_little_waste() -> None:
    sizes = [onednn.padded_rows(n) for n in range(1, 4097)]
    assert all(0 <= size - n < max(8, n / 8) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= 8 * 8
    assert onednn.padded_rows(2048) == 2048
