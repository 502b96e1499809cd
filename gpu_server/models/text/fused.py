"""BERT's layers in seven kernels each, for use inside graphs: a replacement of the stock layers, measured to be faster.

Per layer: one projection to q, k and v; token-tiled attention; the output projection accumulated onto the residual; layer
norm; the up projection with GELU in its epilogue; the down projection accumulated onto the residual; layer norm. The biases
of the two accumulated projections are folded, in float64, into the shift of the norm before them, and the projection that
reads that norm is corrected for it.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch.nn.functional import layer_norm, linear

from gpu_server.models.text.graphs import Bounds

FAMILIES = frozenset({"bert", "camembert", "roberta", "xlm-roberta"})
# cuBLAS has GELU in its tanh form only; `Forward` compares the result with the model's own before it is used.
ACTIVATIONS = frozenset({"gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"})


class _Layer(NamedTuple):
    """Weights of one layer: projections, and the scale and shift of its two norms."""

    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    out: torch.Tensor
    scale_1: torch.Tensor
    shift_1: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    down: torch.Tensor
    scale_2: torch.Tensor
    shift_2: torch.Tensor


def suits(model: Any) -> bool:
    """Whether a Transformers model is a BERT whose layers can be replaced."""
    config = model.config
    plain = getattr(config, "position_embedding_type", None) in (None, "absolute")
    return (
        config.model_type in FAMILIES
        and config.hidden_act in ACTIVATIONS
        and plain
        and not getattr(config, "is_decoder", False)
    )


class FusedBert:
    """The forward of a BERT-family model that `suits`; its embedding tables are shared, its layers' weights copied."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self._heads = config.num_attention_heads
        self._eps = config.layer_norm_eps
        stock = list(model.encoder.layer)
        self._embeddings = _with_shift(model.embeddings, stock[0].attention.output.dense.bias)
        following = [layer.attention.output.dense.bias for layer in stock[1:]]
        last = torch.zeros_like(stock[0].attention.output.dense.bias)
        self._layers = [_fold(layer, after) for layer, after in zip(stock, [*following, last], strict=True)]

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, bounds: Bounds) -> torch.Tensor:
        """Hidden states `[tokens, hidden_size]` of ids and positions int64 `[tokens]`."""
        hidden: torch.Tensor = self._embeddings(input_ids=ids[None], position_ids=positions[None])[0]
        for layer in self._layers:
            hidden = self._run(layer, hidden, bounds)
        return hidden

    def _run(self, layer: _Layer, hidden: torch.Tensor, bounds: Bounds) -> torch.Tensor:
        from gpu_server.models.text.kernel import NO_REACH, tiled_attention

        tokens, size = hidden.shape
        dim = size // self._heads
        q, k, v = linear(hidden, layer.qkv, layer.qkv_bias).view(tokens, 3, self._heads, dim).unbind(1)
        attended = tiled_attention(q, k, v, *bounds, dim**-0.5, False, NO_REACH).view(tokens, size)
        hidden.addmm_(attended, layer.out)
        hidden = layer_norm(hidden, (size,), layer.scale_1, layer.shift_1, self._eps)
        wide = torch._addmm_activation(layer.up_bias, hidden, layer.up, use_gelu=True)
        hidden.addmm_(wide, layer.down)
        return layer_norm(hidden, (size,), layer.scale_2, layer.shift_2, self._eps)


def _fold(layer: Any, next_out_bias: torch.Tensor) -> _Layer:
    attention, out = layer.attention.self, layer.attention.output
    projections = (attention.query, attention.key, attention.value)
    qkv = torch.cat([p.weight for p in projections]).double()
    qkv_bias = torch.cat([p.bias for p in projections]).double()
    up, up_bias = layer.intermediate.dense.weight.double(), layer.intermediate.dense.bias.double()
    out_bias, down_bias = out.dense.bias.double(), layer.output.dense.bias.double()
    folded = _Layer(
        qkv=qkv,
        qkv_bias=qkv_bias - qkv @ out_bias,
        out=out.dense.weight.t(),
        scale_1=out.LayerNorm.weight,
        shift_1=out.LayerNorm.bias.double() + down_bias,
        up=up.t(),
        up_bias=up_bias - up @ down_bias,
        down=layer.output.dense.weight.t(),
        scale_2=layer.output.LayerNorm.weight,
        shift_2=layer.output.LayerNorm.bias.double() + next_out_bias.double(),
    )
    dtype = out.dense.weight.dtype
    return _Layer(*(w.detach().to(dtype) for w in folded))


def _with_shift(embeddings: Any, shift: torch.Tensor) -> Any:
    """The embeddings with `shift` added to their norm's own, on shared tables."""
    shifted = copy.copy(embeddings)
    shifted._modules = dict(embeddings._modules)
    shifted.LayerNorm = copy.deepcopy(embeddings.LayerNorm)
    total = embeddings.LayerNorm.bias.double() + shift.double()
    shifted.LayerNorm.bias.data = total.to(embeddings.LayerNorm.bias.dtype)
    return shifted
