"""Takes out of a loaded model what would change its numbers with the texts that it has seen, or that stand beside one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_server.errors import ConfigError


def settle(model: Any, max_length: int, folder: Path) -> None:
    """Make a Transformers model steady for texts of up to `max_length` tokens. Raises ConfigError where it cannot be.

    folder: where it is from, for the message.
    """
    if hasattr(model, "set_attention_type"):
        # BigBird is sparse until its first short text, and then never again.
        model.set_attention_type("original_full")
    for module in model.modules():
        if hasattr(module, "original_max_seq_len"):
            _freeze(module, max_length, folder)


def _freeze(rotary: Any, max_length: int, folder: Path) -> None:
    """Keep the frequencies that positions turn with: up to a length Transformers only looks whether to replace them."""
    kinds = rotary.rope_type
    if isinstance(kinds, dict):
        rotary.rope_type = {
            layer: _frozen(rotary, kind, layer, max_length, folder) for layer, kind in kinds.items()
        }
    else:
        rotary.rope_type = _frozen(rotary, kinds, "", max_length, folder)


def _frozen(rotary: Any, kind: str, layer: str, max_length: int, folder: Path) -> str:
    """The kind that Transformers' `dynamic_rope_update` is to see. layer: of what type of layers, where they differ."""
    if "dynamic" in kind:
        limit = int(rotary.original_max_seq_len)
    elif kind == "longrope":
        saved = rotary.config.rope_parameters
        limit = int((saved[layer] if layer else saved)["original_max_position_embeddings"])
    else:
        return kind
    if max_length > limit:
        raise ConfigError(
            f"{folder}: {kind} turns all texts of a batch by its longest: set max_length to {limit} or less"
        )
    return "default"
