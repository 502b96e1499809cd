"""The Dense modules of sentence-transformers: a linear layer and an activation behind the pooling, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gpu_server.errors import ConfigError, ModelFolderMissing
from gpu_server.models.text.modules import read_json

_VECTORS = "sentence_embedding"


class Dense(torch.nn.Module):
    """`activation(linear(x))`, plus `x` itself, projected where its size changes, if it has a residual."""

    def __init__(self, config: dict[str, Any], activation: torch.nn.Module) -> None:
        super().__init__()
        self.in_features = int(config["in_features"])
        self.out_features = int(config["out_features"])
        self.linear = torch.nn.Linear(self.in_features, self.out_features, bias=config.get("bias", True))
        self.activation = activation
        self.residual: torch.nn.Module | None = None
        if config.get("use_residual"):
            same = self.in_features == self.out_features
            self.residual = (
                torch.nn.Identity()
                if same
                else torch.nn.Linear(self.in_features, self.out_features, bias=False)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 `[items, in_features]` to `[items, out_features]`."""
        out: torch.Tensor = self.activation(self.linear(x))
        return out if self.residual is None else out + self.residual(x)


def load(folders: Sequence[Path], device: torch.device) -> list[Dense]:
    """The modules saved in `folders`, in order. Raises ConfigError on what cannot be honoured, ModelFolderMissing."""
    return [_load(folder).to(device).eval().requires_grad_(False) for folder in folders]


def _load(folder: Path) -> Dense:
    path = folder / "config.json"
    config = read_json(path, required=True)
    for key in ("module_input_name", "module_output_name"):
        if (config.get(key) or _VECTORS) != _VECTORS:
            raise ConfigError(f"{path}: {key} = {config[key]} is not supported")
    try:
        module = Dense(config, _activation(path, config.get("activation_function") or "torch.nn.Tanh"))
        module.load_state_dict(_weights(folder))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{path}: not a Dense module: {str(error).splitlines()[0]}") from None
    return module


def _activation(path: Path, name: str) -> torch.nn.Module:
    kind = getattr(torch.nn, name.rpartition(".")[2], None)
    if (
        not name.startswith("torch.nn.")
        or not isinstance(kind, type)
        or not issubclass(kind, torch.nn.Module)
    ):
        raise ConfigError(f"{path}: activation_function {name} is not supported")
    return kind()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    safe, old = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safe.is_file():
        return {name: value.float() for name, value in load_file(safe).items()}
    if old.is_file():
        loaded: dict[str, torch.Tensor] = torch.load(old, map_location="cpu", weights_only=True)
        return {name: value.float() for name, value in loaded.items()}
    raise ModelFolderMissing(f"{safe} is missing")
