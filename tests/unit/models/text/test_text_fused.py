"""The hand-fused BERT layers against Transformers' own, on the CPU: the kernel is replaced by the textbook formula."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from gpu_server.models.text import encoder, selfcheck
from gpu_server.models.text.fused import FusedBert, suits

CPU = torch.device("cpu")


def textbook(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lo: torch.Tensor,
    hi: torch.Tensor,
    scale: float,
    *_: object,
) -> torch.Tensor:
    place = torch.arange(len(q))
    seen = (place[None] >= lo[:, None]) & (place[None] < hi[:, None])
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    return out[0].transpose(0, 1).contiguous()


def normalized(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, scale.shape, scale, shift, eps)


def embedded(
    ids: torch.Tensor,
    positions: torch.Tensor,
    kinds: torch.Tensor | None,
    tables: tuple[torch.Tensor, ...],
    *norm: Any,
) -> torch.Tensor:
    kinds = torch.zeros_like(ids) if kinds is None else kinds
    rows = (table[at] for table, at in zip(tables, (ids, positions, kinds), strict=True))
    return normalized(sum(rows, torch.tensor(0.0)), *norm)


def widened(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias))


@pytest.fixture(autouse=True)
def _no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, functions in {
        "kernel": {"tiled_attention": textbook, "NO_REACH": 1 << 30},
        "norm_kernel": {"layer_norm": normalized, "embed": embedded},
        "gelu_kernel": {"linear_gelu": widened},
    }.items():
        module = types.ModuleType(f"gpu_server.models.text.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
@torch.inference_mode()
def test_equals_the_layers_it_replaces(make_model: Callable[..., Path], family: str) -> None:
    made = encoder.load(make_model(family), CPU)
    for parameter in made.model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(0.3, 0.2)
    selfcheck.choose(made, 60)
    assert suits(made.model)
    own, fused = selfcheck.errors_to_float32(made, selfcheck.probe(made, 60), FusedBert(made.model))
    assert own < 1e-5
    assert fused < 1e-5


@torch.inference_mode()
def test_leaves_the_model_as_it_was(make_model: Callable[..., Path]) -> None:
    made = encoder.load(make_model("bert"), CPU)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    FusedBert(made.model)
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "changes"), [("electra", {}), ("bert", {"hidden_act": "relu"}), ("bert", {"is_decoder": True})]
)
def test_what_it_does_not_replace(family: str, changes: dict[str, object]) -> None:
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = AutoModel.from_config(AutoConfig.for_model(family, **tiny, vocab_size=50, **changes))
    assert not suits(model)
