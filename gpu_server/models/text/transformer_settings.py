"""What sentence-transformers saves of its Transformer module, under any of its file's names. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_server.errors import ConfigError
from gpu_server.models.text.modules import mapping, read_json, whole

_NAMES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_OLD_KEYS = {
    "model_kwargs": "model_args",
    "config_kwargs": "config_args",
    "processor_kwargs": "tokenizer_args",
}
# What is honoured, and what changes no number here.
_KNOWN = {
    "model_kwargs": {
        "trust_remote_code", "add_pooling_layer", "attn_implementation", "dtype", "torch_dtype", "low_cpu_mem_usage",
        "use_safetensors",
    },
    "config_kwargs": {"trust_remote_code", "add_pooling_layer", "use_memory_efficient_attention", "unpad_inputs"},
    "processor_kwargs": {"trust_remote_code", "model_max_length", "truncation_side", "padding_side", "use_fast"},
    "processing_kwargs": {"text", "image", "audio", "video"},
    "text": {"max_length", "padding"},
}  # fmt: skip
# Of the file itself; the lengths of queries and documents and the expansion of queries are not among them.
_KEYS = {
    "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name", "processing_kwargs",
    "unpad_inputs", "backend", "cache_dir", *_OLD_KEYS, *_OLD_KEYS.values(),
}  # fmt: skip
# What each task takes of the model's outputs, and what that is called for the modules after it.
_OUTPUTS = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "fill-mask": ("logits", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
}


@dataclass(frozen=True)
class TransformerSettings:
    """path: the file, "" values and 0 where it is silent. task: of Transformers. max_length: in tokens.

    truncation_side: the side on which over-long texts are cut.
    """

    path: Path
    task: str
    lowercase: bool
    max_length: int
    truncation_side: str


def read(folder: Path) -> TransformerSettings:
    """Read the first file that says anything. Raises ConfigError on settings that cannot be honoured."""
    paths = [folder / f"sentence_{name}_config.json" for name in _NAMES]
    path, settings = next(((path, found) for path in paths if (found := read_json(path))), (paths[0], {}))
    _check_keys(path, settings)
    _check_outputs(path, settings)
    kwargs = {key: _known(path, key, settings.get(old, settings.get(key))) for key, old in _OLD_KEYS.items()}
    processor = kwargs["processor_kwargs"]
    processing = _known(path, "processing_kwargs", settings.get("processing_kwargs"))
    text = _known(path, "text", processing.get("text"))
    return TransformerSettings(
        path=path,
        task=str(settings.get("transformer_task") or ""),
        lowercase=bool(settings.get("do_lower_case")),
        max_length=whole(path, text, "max_length")
        or whole(path, processor, "model_max_length")
        or whole(path, settings, "max_seq_length"),
        truncation_side=str(processor.get("truncation_side") or ""),
    )


def _check_keys(path: Path, settings: dict[str, Any]) -> None:
    unknown = [key for key in settings if key not in _KEYS and settings[key] not in (None, {})]
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]} is not supported")


def _check_outputs(path: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError unless plain texts go in and what comes out is the usual of the task."""
    usual = _OUTPUTS.get(str(settings.get("transformer_task") or "feature-extraction"))
    if usual is None:
        return
    output, name = usual
    if settings.get("module_output_name") not in (None, name):
        raise ConfigError(
            f"{path}: module_output_name must be {name}, not {settings['module_output_name']!r}"
        )
    kinds = mapping(path, settings, "modality_config")
    if "message" in kinds:
        raise ConfigError(f"{path}: message in modality_config, texts in a chat template, is not supported")
    text = mapping(path, kinds, "text")
    found = text.get("method"), text.get("method_output_name")
    if kinds and found not in (("forward", output), ("forward", [output])):
        raise ConfigError(f"{path}: text in modality_config must be {output} of forward, not {text}")


def _known(path: Path, key: str, value: Any) -> dict[str, Any]:
    """The options under `key`. Raises ConfigError on one that is not known, unless it says nothing."""
    options = mapping(path, {key: value}, key)
    unknown = [name for name in options if name not in _KNOWN[key] and options[name] not in (None, {})]
    if unknown:
        raise ConfigError(f"{path}: {unknown[0]} in {key} is not supported")
    return options
