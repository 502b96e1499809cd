"""Static compilation of an encoder's layers: the pointwise work between two matrix products becomes one kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

RECOMPILES = 64


def compile_layers(model: Any) -> int:
    """Compile each layer of a Transformers model for fixed shapes; all layers share the code. Returns how many.

    0 where the layers are not a list of the config's length (ALBERT shares one): such a model runs as it is. The cache is
    kept under the user's cache folder, so that a second start compiles nothing.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpu-server" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch._dynamo.config.recompile_limit = RECOMPILES
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILES * 16
    layers = _layers(model)
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)
    return len(layers)


def _layers(model: Any) -> list[torch.nn.Module]:
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return list(module)
    return []
