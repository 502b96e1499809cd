"""Projections of one input made one product, for use inside compiled layers: fewer kernels, and larger ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, Node

TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)
"""Linear layers that stand beside each other under these names, and are given the same input."""

_aten = torch.ops.aten
_PURE = frozenset(
    op.default for op in (_aten.mm, _aten.addmm, _aten.view, _aten.reshape, _aten.permute, _aten.t)
)


class Part(torch.nn.Module):
    """Some columns of a product that others share. Each of them computes all of it, of which `Once` leaves one."""

    def __init__(self, whole: torch.nn.Linear, start: int, end: int) -> None:
        super().__init__()
        self.whole = whole
        self.start = start
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[…, size]` to `[…, end − start]`."""
        product: torch.Tensor = self.whole(x)
        return product[..., self.start : self.end]


class Once(CustomGraphPass):
    """A pass of torch's compiler: a product of the same tensors is computed once."""

    def __call__(self, graph: Graph) -> None:
        """Replace every product, and the views that lead to it, by an equal one before it."""
        seen: dict[str, Node] = {}
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target in _PURE:
                first = seen.setdefault(f"{node.target}{node.args}{node.kwargs}", node)
                if first is not node:
                    node.replace_all_uses_with(first)
                    graph.erase_node(node)

    def uuid(self) -> str:
        """What torch's cache tells this pass by."""
        return f"{__name__}.Once 1"


class Merged:
    """Finds what can be merged in `layers`, whose own weights become views of the merged ones: no memory is added."""

    def __init__(self, layers: Iterable[torch.nn.Module]) -> None:
        found = [
            (module, names)
            for layer in layers
            for module in layer.modules()
            for names in TOGETHER
            if _can_merge([getattr(module, name, None) for name in names])
        ]
        self._swaps = [swap for module, names in found for swap in _merge(module, names)]

    def install(self, merged: bool) -> None:
        """Put the parts of products in place of the stock layers, or those back."""
        for module, name, part, stock in self._swaps:
            setattr(module, name, part if merged else stock)


def _can_merge(linears: Sequence[Any]) -> bool:
    if any(type(linear) is not torch.nn.Linear for linear in linears):
        return False
    return len({(one.in_features, one.bias is None, one.weight.dtype) for one in linears}) == 1


def _merge(
    module: torch.nn.Module, names: Sequence[str]
) -> Iterator[tuple[torch.nn.Module, str, Part, torch.nn.Linear]]:
    """Where each part goes, and the stock layer that it replaces there."""
    stock = [getattr(module, name) for name in names]
    whole = torch.nn.Linear(
        stock[0].in_features, sum(one.out_features for one in stock), stock[0].bias is not None, device="meta"
    )
    whole.weight = _frozen(torch.cat([one.weight for one in stock]))
    if stock[0].bias is not None:
        whole.bias = _frozen(torch.cat([one.bias for one in stock]))
    start = 0
    for name, one in zip(names, stock, strict=True):
        end = start + one.out_features
        one.weight = _frozen(whole.weight[start:end])
        if one.bias is not None:
            one.bias = _frozen(whole.bias[start:end])
        yield module, name, Part(whole, start, end), one
        start = end


def _frozen(weight: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight.detach(), requires_grad=False)
