"""Compiled layers: what is compiled of a model, and that products of one input are made one. On a CPU, as on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import linear
from transformers import AutoModel

from gpu_server.models.text import compiling
from gpu_server.models.text.compiling import CompiledLayers

# torch's own, while it imports its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
MakeModel = Callable[..., Path]


@pytest.mark.parametrize(
    ("family", "beside", "merged"),
    [
        ("bert", {"BertEmbeddings"}, {"query", "key", "value"}),
        ("modernbert", {"ModernBertEmbeddings", "ModernBertRotaryEmbedding"}, set()),
        ("qwen3", {"Qwen3RMSNorm", "Qwen3RotaryEmbedding"}, {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}),
    ],
)  # fmt: skip
def test_what_is_compiled(make_model: MakeModel, family: str, beside: set[str], merged: set[str]) -> None:
    model = AutoModel.from_pretrained(make_model(family))
    model.pooler = None
    found = CompiledLayers(model)
    assert {type(module).__name__ for module in found._modules[3:]} == beside
    assert {name for _, name, _, _ in found._merged._swaps} == merged


def test_shared_layers_are_not_compiled(make_model: MakeModel) -> None:
    assert not CompiledLayers(AutoModel.from_pretrained(make_model("albert"))).found


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> dict[bool, list[list[Any]]]:
    """What each compiled graph is given, of those for any shape (True) and for fixed ones; no code is generated."""
    seen: dict[bool, list[list[Any]]] = {True: [], False: []}
    compile_it = torch.compile

    def compiled(forward: Callable[..., Any], dynamic: bool, options: object) -> Callable[..., Any]:
        def keep(graph: torch.fx.GraphModule, given: list[Any]) -> Callable[..., Any]:
            seen[dynamic].append(given)
            return graph.forward

        return compile_it(forward, dynamic=dynamic, backend=aot_autograd(fw_compiler=keep))

    monkeypatch.setattr(torch, "compile", compiled)
    torch.compiler.reset()
    return seen


def run(model: Any, *sizes: int) -> None:
    for tokens in sizes:
        model(input_ids=torch.ones(1, tokens, dtype=torch.long))


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
@torch.no_grad()
def test_layers_are_compiled_for_fixed_shapes(
    make_model: MakeModel, traced: dict[bool, list[list[Any]]], family: str
) -> None:
    """Even where they are given what was compiled for any shape."""
    model = AutoModel.from_pretrained(make_model(family)).eval()
    layers = CompiledLayers(model)
    with layers:
        run(model, 12, 20)
    assert {isinstance(one, torch.SymInt) for given in traced[False] for one in given} == {False}
    assert any(isinstance(one, torch.SymInt) for given in traced[True] for one in given)
    assert {12, 20} <= {size for given in traced[False] for one in given for size in one.shape}
    made = len(traced[False]), len(traced[True])
    with layers:
        run(model, 20, 12)
    assert (len(traced[False]), len(traced[True])) == made


@torch.no_grad()
def test_layers_over_the_limit_of_torch_are_not_left_uncompiled(
    make_model: MakeModel, traced: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModel.from_pretrained(make_model("bert")).eval()
    before = torch._dynamo.config.recompile_limit
    monkeypatch.setattr(compiling, "RECOMPILES", 2)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit), CompiledLayers(model):
        run(model, 12, 20, 28)
    assert torch._dynamo.config.recompile_limit == before


@torch.inference_mode()
def test_parts_give_what_the_stock_layers_give(make_model: MakeModel) -> None:
    from gpu_server.models.text.merging import Merged, Part

    model = AutoModel.from_pretrained(make_model("qwen3", attention_bias=True)).eval()
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(4, 40)[None]
    want = model(ids).last_hidden_state
    merged = Merged(model.layers)
    assert model.layers[0].mlp.up_proj.weight.data_ptr() > model.layers[0].mlp.gate_proj.weight.data_ptr()
    merged.install(True)
    assert isinstance(model.layers[2].self_attn.k_proj, Part)
    torch.testing.assert_close(model(ids).last_hidden_state, want)
    merged.install(False)
    assert not any(isinstance(module, Part) for module in model.modules())
    torch.testing.assert_close(model(ids).last_hidden_state, want)
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_an_equal_product_is_computed_once() -> None:
    from gpu_server.models.text.merging import Once

    def parts(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        left, right = (linear(x, weight, bias)[..., columns] for columns in (slice(4), slice(4, 8)))
        return left * right + linear(x + 1, weight, bias)[..., :4]

    given = torch.randn(1, 5, 8), torch.randn(8, 8), torch.randn(8)
    traced = make_fx(parts)(*given)
    assert products(traced) == 3
    Once()(traced.graph)
    traced.recompile()
    assert products(traced) == 2
    torch.testing.assert_close(traced(*given), parts(*given))


def products(traced: torch.fx.GraphModule) -> int:
    return sum(node.target is torch.ops.aten.addmm.default for node in traced.graph.nodes)
