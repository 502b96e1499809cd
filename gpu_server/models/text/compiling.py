"""Static compilation of an encoder's layers: the pointwise work between two matrix products becomes one kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

RECOMPILES = 64


class CompiledLayers:
    """The layers of a Transformers model compiled for fixed shapes; inside `with` the model runs them so.

    Outside it the model runs as it is: a shape that was not compiled would be while its request waits. Keep the object as
    long as a graph that was captured inside: it owns the kernels. `found` is False where the layers are not a list of the
    config's length (ALBERT shares one): such a model runs as it is inside, too.
    """

    def __init__(self, model: Any) -> None:
        torch._dynamo.config.recompile_limit = RECOMPILES
        torch._dynamo.config.accumulated_recompile_limit = RECOMPILES * 16
        self._layers = _layers(model)
        self._stock: list[Callable[..., Any]] = [layer.forward for layer in self._layers]
        self._compiled = [torch.compile(forward, dynamic=False) for forward in self._stock]

    @property
    def found(self) -> bool:
        """Whether there are layers to compile."""
        return bool(self._layers)

    def __enter__(self) -> None:
        self._install(self._compiled)

    def __exit__(self, *exception: object) -> None:
        self._install(self._stock)

    def _install(self, forwards: list[Callable[..., Any]]) -> None:
        for layer, forward in zip(self._layers, forwards, strict=True):
            layer.forward = forward


def end_workers() -> None:
    """End the processes that torch compiles in."""
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()


def _layers(model: Any) -> list[torch.nn.Module]:
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []
