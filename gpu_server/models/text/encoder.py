"""An unmodified Transformers encoder that turns a flat batch of tokens into flat hidden states."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from gpu_server.errors import ConfigError, EngineStartFailed
from gpu_server.models.text import attention
from gpu_server.models.text.batch import Batch, pack

Runs = Literal["packed", "padded"]
DTYPES = ("float32", "float16", "bfloat16")


class Encoder:
    """A loaded model on one device. `runs` says how batches go through it; `selfcheck.choose` sets it.

    hidden_size: length of one hidden state. vocab_size: rows of its embedding table. first_position: what positions
    count from.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.dtype: torch.dtype = model.dtype
        self.hidden_size = int(model.config.get_text_config().hidden_size)
        self.vocab_size = int(model.get_input_embeddings().num_embeddings)
        self.pad_id = int(model.config.get_text_config().pad_token_id or 0)
        self.first_position = _first_position(model)
        self._stock_attention: str = model.config._attn_implementation
        self.runs: Runs = "padded"

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Hidden states `[tokens, hidden_size]` of a batch, in the model's dtype."""
        return self._packed(batch) if self.runs == "packed" else self._padded(batch)

    def use(self, runs: Runs) -> None:
        """Switch to packed or padded. Raises CannotPack if the model does not take another attention function."""
        name = attention.NAME if runs == "packed" else self._stock_attention
        with quiet():
            self.model.set_attn_implementation(name)
        if self.model.config._attn_implementation != name:
            raise attention.CannotPack(
                "the model's attention does not go through Transformers' AttentionInterface"
            )
        self.runs = runs

    def pack(
        self, ids: np.ndarray[Any, np.dtype[np.int32]], lengths: np.ndarray[Any, np.dtype[np.int64]]
    ) -> Batch:
        """A batch of sequences laid end to end, on this model's device and with its positions."""
        return pack(ids, lengths, self.device, self.first_position)

    def _packed(self, batch: Batch) -> torch.Tensor:
        out = self.model(input_ids=batch.ids[None], position_ids=batch.positions[None], layout=batch.layout)
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def _padded(self, batch: Batch) -> torch.Tensor:
        layout = batch.layout
        ids = batch.ids.new_full((layout.items, layout.longest), self.pad_id)
        ids.view(-1)[layout.cells] = batch.ids
        mask = torch.zeros_like(ids)
        mask.view(-1)[layout.cells] = 1
        hidden: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden.flatten(0, 1)[layout.cells]


def load(folder: Path, device: torch.device, dtype: str = "auto", stored_dtype: str = "") -> Encoder:
    """Load the weights of `folder` onto `device`.

    dtype: float32, float16, bfloat16 or auto: float32 on a CPU; else bfloat16 if stored so, and float16 if not.
    Raises ConfigError on a model that cannot be used, EngineStartFailed on weights that do not fit it.
    """
    attention.register()
    model = _from_pretrained(folder, _pick_dtype(dtype, stored_dtype, device))
    if model.config.is_encoder_decoder:
        raise ConfigError(f"{folder}: {model.config.model_type} is an encoder-decoder, not an encoder")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.config.get_text_config().use_cache = False
    return Encoder(model.to(device).eval().requires_grad_(False), device)


def _pick_dtype(dtype: str, stored: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "bfloat16" if stored == "bfloat16" else "float16"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype} must be auto, {', '.join(DTYPES)}")
    picked: torch.dtype = getattr(torch, dtype)
    return picked


def _from_pretrained(folder: Path, dtype: torch.dtype) -> Any:
    try:
        with quiet():
            model, report = AutoModel.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: {_first_line(error)}") from None
    except RuntimeError as error:
        raise EngineStartFailed(f"{folder}: {_first_line(error)}") from error
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))
    if missing:
        # Transformers would fill them with random numbers and serve on.
        raise EngineStartFailed(f"{folder}: the weights lack {missing[0]} and {len(missing) - 1} more")
    return model


def _first_position(model: Any) -> int:
    """RoBERTa and its kin count positions from padding_idx + 1; the others from 0."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_inputs_embeds"):
            return int(module.padding_idx) + 1
    return 0


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Transformers' warnings and progress bars off stderr: what matters is raised."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
