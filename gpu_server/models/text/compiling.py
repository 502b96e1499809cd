"""Static compilation of an encoder's layers: the pointwise work between two matrix products becomes one kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

RECOMPILES = 1024
"""The most compilations of one class of layers: its kinds in a model times buckets, of all models in the process."""


class CompiledLayers:
    """The layers of a Transformers model compiled for fixed shapes, and what stands beside them, for any; inside `with`
    the model runs them so.

    Outside it the model runs as it is: a shape that was not compiled would be while its request waits. Keep the object as
    long as a graph that was captured inside: it owns the kernels. `found` is False where the layers are not a list of the
    config's length (ALBERT shares one): such a model runs as it is inside, too.
    """

    def __init__(self, model: Any) -> None:
        # Not before it is needed: it brings torch's compiler.
        from gpu_server.models.text.merging import Merged

        layers = _layers(model)
        self._merged = Merged(layers)
        self._modules = [*layers, *_beside(model, layers)]
        self._stock: list[Callable[..., Any]] = [module.forward for module in self._modules]
        # Beside the layers are no large products, which alone would be slower for not knowing their shapes.
        self._compiled = [
            torch.compile(forward, dynamic=False, options=_options())
            if number < len(layers)
            else _unmarked(torch.compile(forward, dynamic=True, options=_options()))
            for number, forward in enumerate(self._stock)
        ]

    @property
    def found(self) -> bool:
        """Whether there are layers to compile."""
        return bool(self._modules)

    def __enter__(self) -> None:
        self._limits = torch._dynamo.config.patch(
            recompile_limit=RECOMPILES,
            accumulated_recompile_limit=RECOMPILES,
            # What is over them would run uncompiled, and say nothing.
            fail_on_recompile_limit_hit=True,
        )
        self._limits.__enter__()
        self._merged.install(True)
        self._install(self._compiled)

    def __exit__(self, *exception: object) -> None:
        self._install(self._stock)
        self._merged.install(False)
        self._limits.__exit__(*exception)

    def _install(self, forwards: list[Callable[..., Any]]) -> None:
        for module, forward in zip(self._modules, forwards, strict=True):
            module.forward = forward


def end_workers() -> None:
    """End the processes that torch compiles in."""
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()


def _unmarked(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward compiled for any shape, without the mark that it leaves on its outputs.

    Layers that are given marked ones are compiled for any shape too, `dynamic=False` or not.
    """
    return lambda *args, **kwargs: tree_map_only(torch.Tensor, torch.Tensor.detach, forward(*args, **kwargs))


@cache
def _options() -> dict[str, Any]:
    """One object for all: layers that are compiled with other options do not share their code."""
    from gpu_server.models.text.merging import Once

    return {"post_grad_custom_pre_pass": Once()}


def _layers(model: Any) -> list[torch.nn.Module]:
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def _beside(model: Any, layers: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Embeddings, rotary tables and norms of the model: what holds no layer, in modules that hold them all.

    Torch's own are left out: each is one kernel.
    """
    holders = [m for m in model.modules() if m not in layers and any(p in layers[:1] for p in m.modules())]
    return [
        child
        for holder in holders
        if not isinstance(holder, torch.nn.ModuleList)
        for child in holder.children()
        if child not in holders and not type(child).__module__.startswith("torch.nn.")
    ]
