"""BERT's layers in seven kernels each, for use inside graphs: a replacement of the stock layers, measured to be faster.

Per layer: one projection to q, k and v; token-tiled attention; the output projection accumulated onto the residual; layer
norm; the up projection with GELU in its epilogue; the down projection accumulated onto the residual; layer norm. The biases
of the two accumulated projections are folded, in float64, into the shift of the norm before them, and the projection that
reads that norm is corrected for it. The embeddings and their norm are one kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear

from gpu_server.models.text.graphs import Bounds, Inputs

FAMILIES = frozenset({"bert", "camembert", "roberta", "xlm-roberta"})
EXACT = frozenset({"gelu"})
# cuBLAS has this form in its epilogue.
TANH = frozenset({"gelu_fast", "gelu_new", "gelu_pytorch_tanh"})


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
        and config.hidden_act in EXACT | TANH
        and plain
        and not getattr(config, "is_decoder", False)
    )


class FusedBert:
    """The forward of a BERT-family model that `suits`; its embedding tables are shared, its layers' weights copied."""

    def __init__(self, model: Any) -> None:
        config, embeddings = model.config, model.embeddings
        self._heads = config.num_attention_heads
        self._eps = config.layer_norm_eps
        self._exact = config.hidden_act in EXACT
        stock = list(model.encoder.layer)
        out_biases = [layer.attention.output.dense.bias for layer in stock]
        self._tables = (
            embeddings.word_embeddings.weight,
            embeddings.position_embeddings.weight,
            embeddings.token_type_embeddings.weight,
        )
        self._scale = embeddings.LayerNorm.weight
        self._shift = _sum(embeddings.LayerNorm.bias, out_biases[0])
        following = [*out_biases[1:], torch.zeros_like(out_biases[0])]
        self._layers = [_fold(layer, after) for layer, after in zip(stock, following, strict=True)]

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        """Hidden states `[tokens, hidden_size]`."""
        from gpu_server.models.text.norm_kernel import embed

        ids, positions, types, bounds, _ = inputs
        hidden = embed(ids, positions, types, self._tables, self._scale, self._shift, self._eps)
        for layer in self._layers:
            hidden = self._run(layer, hidden, bounds)
        return hidden

    def _run(self, layer: _Layer, hidden: torch.Tensor, bounds: Bounds) -> torch.Tensor:
        from gpu_server.models.text.kernel import NO_REACH, tiled_attention
        from gpu_server.models.text.norm_kernel import layer_norm

        tokens, size = hidden.shape
        dim = size // self._heads
        q, k, v = linear(hidden, layer.qkv, layer.qkv_bias).view(tokens, 3, self._heads, dim).unbind(1)
        attended = tiled_attention(q, k, v, *bounds, dim**-0.5, False, NO_REACH).view(tokens, size)
        hidden.addmm_(attended, layer.out)
        hidden = layer_norm(hidden, layer.scale_1, layer.shift_1, self._eps)
        hidden.addmm_(self._widen(layer, hidden), layer.down)
        return layer_norm(hidden, layer.scale_2, layer.shift_2, self._eps)

    def _widen(self, layer: _Layer, hidden: torch.Tensor) -> torch.Tensor:
        """The up projection and GELU, in the form that the config names."""
        from gpu_server.models.text.gelu_kernel import linear_gelu

        if self._exact:
            return linear_gelu(hidden, layer.up, layer.up_bias)
        return torch._addmm_activation(layer.up_bias, hidden, layer.up.t(), use_gelu=True)


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
        shift_1=_sum(out.LayerNorm.bias, down_bias),
        up=up,
        up_bias=up_bias - up @ down_bias,
        down=layer.output.dense.weight.t(),
        scale_2=layer.output.LayerNorm.weight,
        shift_2=_sum(layer.output.LayerNorm.bias, next_out_bias),
    )
    dtype = out.dense.weight.dtype
    return _Layer(*(w.detach().to(dtype) for w in folded))


def _sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Added in float64."""
    return (a.double() + b.double()).to(a.dtype)
