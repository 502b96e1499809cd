"""What a text model's folder says about itself: pooling, lengths, prompts, tokenizer. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from gpu_server.errors import ConfigError, ModelFolderMissing

Json = TypeVar("Json", dict[str, Any], list[Any])
Pooling = Literal["cls", "mean", "lasttoken"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

_FALLBACK_LENGTH = 512
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class Checkpoint:
    """Facts of one model folder.

    folder: holds config.json, the weights and tokenizer.json. stored_dtype: as config.json has it, or "".
    max_length: longest item in tokens, special tokens included. positions: as config.json counts them, 0 if it does
    not; a family may reserve some of them. prompts: text by name; default_prompt: one of these names, or "".
    """

    folder: Path
    stored_dtype: str
    pooling: Pooling
    normalize: bool
    max_length: int
    positions: int
    prompts: dict[str, str]
    default_prompt: str
    tokenizer_json: bytes = field(repr=False)


def read(folder: Path) -> Checkpoint:
    """Read a folder saved by sentence-transformers or by Transformers.

    Raises ModelFolderMissing naming a file that must be there, ConfigError on settings that cannot be honoured.
    """
    modules = _modules(folder)
    inner = modules["Transformer"] if modules else folder
    config = _read_json(inner / "config.json", required=True)
    settings = _read_json(inner / "sentence_bert_config.json")
    prompts = _read_json(folder / "config_sentence_transformers.json")
    _check_task(inner, settings)
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    return Checkpoint(
        folder=inner,
        stored_dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        pooling=_saved_pooling(modules["Pooling"]) if modules else _default_pooling(config),
        normalize="Normalize" in modules,
        max_length=_max_length(inner, settings, positions),
        positions=max(positions, 0),
        prompts=dict(prompts.get("prompts") or {}),
        default_prompt=prompts.get("default_prompt_name") or "",
        tokenizer_json=_tokenizer(inner, lowercase=bool(settings.get("do_lower_case"))),
    )


def _modules(folder: Path) -> dict[str, Path]:
    """Folder of each sentence-transformers module by its class name; empty for a plain Transformers folder."""
    path = folder / "modules.json"
    entries = _parse(path, list) if path.is_file() else []
    modules: dict[str, Path] = {}
    for entry in entries:
        package, _, kind = entry["type"].rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or kind not in (
            "Transformer",
            "Pooling",
            "Normalize",
        ):
            raise ConfigError(f"{path}: module {entry['type']} is not supported")
        modules[kind] = folder / entry["path"]
    if entries and list(modules) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ConfigError(f"{path}: must list Transformer, Pooling and perhaps Normalize, in this order")
    return modules


def _saved_pooling(folder: Path) -> Pooling:
    path = folder / "config.json"
    config = _read_json(path, required=True)
    mode = config.get("pooling_mode") or [name for key, name in _OLD_POOLING_KEYS.items() if config.get(key)]
    modes = [mode] if isinstance(mode, str) else mode or ["mean"]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ConfigError(
            f"{path}: pooling {'+'.join(modes)} is not supported, only one of {', '.join(POOLINGS)}"
        )
    if not config.get("include_prompt", True):
        raise ConfigError(f"{path}: include_prompt = false is not supported")
    return cast(Pooling, modes[0])


def _default_pooling(config: dict[str, Any]) -> Pooling:
    """What sentence-transformers does without modules.json, so that both give the same vectors for the same folder.

    TEI instead takes the first token of anything named Bert and refuses the rest.
    """
    architecture = (config.get("architectures") or [""])[0]
    causal = architecture.endswith("ForCausalLM") and config.get("is_causal", True)
    return "lasttoken" if causal else "mean"


def _max_length(folder: Path, settings: dict[str, Any], positions: int) -> int:
    """The saved max_seq_length, else the tokenizer's, never more than there are positions."""
    length = settings.get("max_seq_length")
    length = length or _read_json(folder / "tokenizer_config.json").get("model_max_length")
    # Tokenizers without a limit are saved with int(1e30).
    limits = [int(n) for n in (length, positions) if n and 0 < n < 1 << 31]
    return min(limits, default=_FALLBACK_LENGTH)


def _check_task(folder: Path, settings: dict[str, Any]) -> None:
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ConfigError(f"{folder / 'sentence_bert_config.json'}: transformer_task {task} is not supported")


def _tokenizer(folder: Path, lowercase: bool) -> bytes:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFolderMissing(f"{path} is missing: a text model needs a fast tokenizer's tokenizer.json")
    data = path.read_bytes()
    if not lowercase:
        return data
    spec = json.loads(data)
    steps = [{"type": "Lowercase"}, *([spec["normalizer"]] if spec.get("normalizer") else [])]
    spec["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(spec, ensure_ascii=False).encode()


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    if required and not path.is_file():
        raise ModelFolderMissing(f"{path} is missing")
    return _parse(path, dict) if path.is_file() else {}


def _parse(path: Path, kind: type[Json]) -> Json:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{path} must hold a JSON {'object' if kind is dict else 'array'}")
    return value
