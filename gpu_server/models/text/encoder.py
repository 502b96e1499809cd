"""An unmodified Transformers encoder that turns a flat batch of tokens into flat hidden states."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    MT5EncoderModel,
    T5EncoderModel,
    UMT5EncoderModel,
)
from transformers.utils import logging as transformers_logging

from gpu_server.errors import ConfigError, EngineStartFailed
from gpu_server.models.text import attention, pieces
from gpu_server.models.text.batch import Batch, pack

Runs = Literal["packed", "padded"]
DTYPES = ("float32", "float16", "bfloat16")
_ON_A_GPU = ("float16", "bfloat16", "float32")
# What one more forward costs, in tokens: on a GPU its launches take as long as a full batch of a small model.
_CPU_OVERHEAD = 32
_GPU_OVERHEAD = 16_384
# Of encoder-decoders, those whose encoder is a model of its own: what holds its weights alone says is the same type.
_T5_ENCODERS = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}
_POSITIONS = ("max_position_embeddings", "n_positions")
_POSITION_TABLES = ("position", "wpe")


class Encoder:
    """A loaded model on one device. `runs` says how batches go through it; `selfcheck.choose` sets it.

    vocab_size: rows of its embedding table. token_types: how many it tells apart. first_position: what positions count
    from. positions: tokens of the longest text that the model has a row for each position of; 0 where it keeps no such
    table. pooler: the model's own, if it had one, taken out of its forward where that works without.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.pooler: Any = getattr(model, "pooler", None)
        if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
            model.pooler = None
        config = model.config.get_text_config()
        self.dtype: torch.dtype = model.dtype
        self.vocab_size = len(model.get_input_embeddings().weight)
        self.token_types = int(getattr(config, "type_vocab_size", 0) or 0)
        self.pad_id = _pad_id(config, self.vocab_size)
        self.first_position = _first_position(model)
        self.positions = max(_positions(model, config) - self.first_position, 0)
        self._stock_attention: str = model.config._attn_implementation
        self.runs: Runs = "padded"

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Hidden states `[tokens, hidden_size]` of a batch, in the model's dtype."""
        on_cpu = self.device.type == "cpu"
        if self.runs == "padded":
            overhead = _CPU_OVERHEAD if on_cpu else _GPU_OVERHEAD
            return pieces.run(batch, self._padded, partial(pieces.by_padding, overhead=overhead))
        return pieces.run(batch, self._packed, pieces.by_tokens) if on_cpu else self._packed(batch)

    @cached_property
    @torch.inference_mode()
    def hidden_size(self) -> int:
        """Length of one hidden state, as the model gives it: some project theirs to another size than config.json has."""
        ids = np.full(1, 0 if self.pad_id else 1, np.int32)
        return self(self.pack(ids, np.ones(1, np.int64))).shape[1]

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
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], types: NDArray[np.int32] | None = None
    ) -> Batch:
        """A batch of sequences laid end to end, on this model's device and with its positions."""
        return pack(ids, lengths, self.device, self.first_position, types)

    def padded(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The same batch as Transformers' models take it: `input_ids`, `attention_mask`, perhaps `token_type_ids`."""
        layout = batch.layout
        inputs = {
            "input_ids": layout.padded(batch.ids, self.pad_id),
            "attention_mask": layout.padded(torch.ones_like(batch.ids)),
        }
        if batch.types is not None:
            inputs["token_type_ids"] = layout.padded(batch.types)
        return inputs

    def _packed(self, batch: Batch) -> torch.Tensor:
        types = {} if batch.types is None else {"token_type_ids": batch.types[None]}
        out = self.model(
            input_ids=batch.ids[None], position_ids=batch.positions[None], layout=batch.layout, **types
        )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def _padded(self, batch: Batch) -> torch.Tensor:
        hidden: torch.Tensor = self.model(**self.padded(batch)).last_hidden_state
        return hidden.flatten(0, 1)[batch.layout.cells]


def dtypes(wanted: str, stored: str, device: torch.device) -> list[torch.dtype]:
    """The number types that a model may run in, best first; `stored` is that of its weights, "" if unknown.

    wanted: float32, float16, bfloat16 or auto: float32 on a CPU; else bfloat16 if stored so, float16 if not, and where a
    model overflows in it, or has no operation for it, the next. Raises ConfigError on another.
    """
    if wanted == "auto":
        names = DTYPES[:1] if device.type == "cpu" else _ON_A_GPU[stored == "bfloat16" :]
        return [getattr(torch, name) for name in names]
    if wanted not in DTYPES:
        raise ConfigError(f"dtype {wanted} must be auto, {', '.join(DTYPES)}")
    return [getattr(torch, wanted)]


def load(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Encoder:
    """The encoder in `folder`; arguments and errors as `load_model` has them."""
    return Encoder(load_model(AutoModel, folder, device, dtype), device)


def load_model(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the weights of `folder` onto `device` as Transformers' auto class `kind` makes a model of them.

    Of T5 and its kin AutoModel is the encoder alone.
    Raises ConfigError on a model that cannot be used, EngineStartFailed on weights that do not fit it.
    """
    attention.register()
    model = _from_pretrained(kind, folder, dtype)
    model.config.get_text_config().use_cache = False
    return model.to(device).eval().requires_grad_(False)


def _from_pretrained(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    code = ""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            code = _unrun_code(config)
            model, report = _class_for(kind, folder, config).from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                # Prefers safetensors; an old pickle is read as tensors alone, whatever it holds besides.
                weights_only=True,
                output_loading_info=True,
                # What does not fit is in the report then; else Transformers names it in a log alone.
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, KeyError, TypeError, AssertionError, StrictDataclassError) as error:
        raise ConfigError(f"{folder}: {_first_line(error)}") from error
    except RuntimeError as error:
        raise EngineStartFailed(f"{folder}: {_first_line(error)}{code}") from error
    for name, stored, made in sorted(report["mismatched_keys"]):
        shapes = f"{list(stored)} in the weights and {list(made)} by config.json"
        raise EngineStartFailed(f"{folder}: {name} is {shapes}{code}")
    # An embedding is not made with an encoder's own pooler; a classifier may need it.
    spare = "pooler" if kind is AutoModel else ""
    missing = sorted(name for name in report["missing_keys"] if spare not in name.split("."))
    if missing:
        # Transformers would fill them with random numbers and serve on.
        raise EngineStartFailed(f"{folder}: the weights lack {missing[0]} and {len(missing) - 1} more{code}")
    return model


def _class_for(kind: Any, folder: Path, config: Any) -> Any:
    """The class to load, which may be the auto class itself. Raises ConfigError on what has a decoder behind its encoder."""
    name = config.model_type
    if name in _T5_ENCODERS and kind in (AutoModel, AutoModelForTokenClassification):
        return _T5_ENCODERS[name] if kind is AutoModel else kind
    if config.is_encoder_decoder:
        raise ConfigError(f"{folder}: {name} is an encoder-decoder, not an encoder")
    return kind


def _unrun_code(config: Any) -> str:
    """What to add to an error of weights that fit no model of Transformers' own."""
    named = getattr(config, "auto_map", None)
    return "; config.json names code of its own (auto_map), which is not run" if named else ""


def _pad_id(config: Any, vocab_size: int) -> int:
    """An id to fill with, which must be one of the table's: some models say −1 for none."""
    pad_id = int(config.pad_token_id or 0)
    return pad_id if 0 <= pad_id < vocab_size else 0


def _positions(model: Any, config: Any) -> int:
    """How many positions a table has rows for, some families having up to two rows more; 0 without a table.

    That the config names a number says little: of rotary models it may be a default of the class.
    """
    if config.model_type == "mpt":
        return int(config.max_seq_len)
    tables = [
        len(table)
        for name, table in model.named_parameters()
        if any(part in name for part in _POSITION_TABLES)
    ]
    named = [count for name in _POSITIONS if isinstance(count := getattr(config, name, None), int)]
    return min((count for count in named if any(0 <= rows - count <= 2 for rows in tables)), default=0)


def _first_position(model: Any) -> int:
    """RoBERTa and its kin count positions from padding_idx + 1; the others from 0."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_inputs_embeds"):
            return int(module.padding_idx) + 1
    return 0


def _first_line(error: Exception) -> str:
    """The first line, with the next where it only announces that one."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {more[0].strip()}" if more and first.endswith(":") else first


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
