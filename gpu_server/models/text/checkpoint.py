"""What a text model's folder says about itself: its task, pooling, lengths, prompts, tokenizer. No torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gpu_server.errors import ConfigError
from gpu_server.models.text import modules, tokenizer_json, transformer_settings
from gpu_server.models.text.modules import Modules, mapping, read_json, whole
from gpu_server.models.text.transformer_settings import TransformerSettings
from gpu_server.tokenizing import Direction
from gpu_server.wire.documents import Activation

log = logging.getLogger(__name__)

Task = Literal["embedding", "multi_vector", "sparse", "scores", "token_classifier"]
SparseActivation = Literal["relu", "log1p_relu"]
POOLINGS = ("cls", "mean", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
SPLADE = "splade"

_FALLBACK_LENGTH = 512
# sentence-transformers gives every model that embeds these, empty where its files do not fill them.
_EMPTY_PROMPTS = ("query", "document")
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TASKS: dict[str, Task] = {
    "ForSequenceClassification": "scores",
    "ForTokenClassification": "token_classifier",
}
_SAVED_TASKS: dict[Task, str] = {
    "embedding": "feature-extraction",
    "multi_vector": "feature-extraction",
    "sparse": "fill-mask",
    "scores": "sequence-classification",
    "token_classifier": "token-classification",
}
# Families that look at distances alone, whatever number of positions their files name.
_RELATIVE = ("t5", "mt5", "umt5")
_LABELLED: tuple[Task, ...] = ("scores", "token_classifier")


@dataclass(frozen=True)
class Splade:
    """How token logits become a sparse vector; `total` adds up the tokens where others take the largest.

    kept: how many of its weights at most, the largest; 0 means all.
    """

    total: bool = False
    activation: SparseActivation = "relu"
    kept: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Facts of one model folder.

    folder: holds config.json, the weights and tokenizer.json. stored_dtype: as config.json has it, or "".
    pooling: one of POOLINGS, or several joined by "+". pools_prompt: whether a prompt's tokens take part in it.
    dense: folders of the Dense modules. dimensions: of an embedding, how many are kept unless a request says otherwise,
    0 for all. activation: of scores, as sentence-transformers saved it, or "".
    max_length: longest item in tokens, special tokens included. positions: as config.json counts them, 0 if it does
    not; a family may reserve some of them. prompts: text by name; default_prompt: one of these names, or "".
    truncation_direction: the side on which over-long texts are cut.
    """

    folder: Path
    task: Task
    stored_dtype: str
    pooling: str
    pools_prompt: bool
    normalize: bool
    dense: tuple[Path, ...]
    dimensions: int
    splade: Splade
    activation: Activation
    max_length: int
    positions: int
    prompts: dict[str, str]
    default_prompt: str
    truncation_direction: Direction
    tokenizer_json: bytes = field(repr=False)


def task_of(folder: Path, pooling: str = "") -> Task:
    """What a folder's model is for. `pooling`, if given, makes an embedding model of it, or with "splade" a sparse one.

    Raises ConfigError, ModelFolderMissing.
    """
    listed = modules.read(folder)
    if (listed.transformer / "adapter_config.json").is_file():
        raise ConfigError(
            f"{listed.transformer}: adapter_config.json makes it an adapter (PEFT): merge it into its model first, save that"
        )
    if pooling or listed.splade:
        return "sparse" if pooling == SPLADE or listed.splade else "embedding"
    if listed.pooling is None:
        name = _architecture(read_json(listed.transformer / "config.json", required=True))
        return next((task for end, task in _TASKS.items() if name.endswith(end)), "embedding")
    return "multi_vector" if all(linear(folder, part) for part in ("sparse", "colbert")) else "embedding"


def linear(folder: Path, part: str) -> Path | None:
    """The weights of one of BGE-M3's linear layers, "sparse" or "colbert", if they are there."""
    files = (folder / f"{part}_linear.{kind}" for kind in ("safetensors", "pt"))
    return next((file for file in files if file.is_file()), None)


def read(folder: Path, pooling: str = "") -> Checkpoint:
    """Read a folder saved by sentence-transformers or by Transformers; `pooling` as `task_of` has it.

    Raises ModelFolderMissing naming a file that must be there, ConfigError on settings that cannot be honoured.
    """
    task = task_of(folder, pooling)
    listed = modules.read(folder)
    inner = listed.transformer
    config = read_json(inner / "config.json", required=True)
    settings = transformer_settings.read(inner)
    saved_path = folder / "config_sentence_transformers.json"
    saved = read_json(saved_path)
    _check_task(settings, task)
    if task in _LABELLED:
        _check_labels(inner / "config.json", config)
    _warn_of_code(inner / "config.json", config)
    positions = _positions(inner / "config.json", config)
    tokenizer = tokenizer_json.read(inner, config, settings)
    prompts, default_prompt = _prompts(saved_path, saved, task)
    return Checkpoint(
        folder=inner,
        task=task,
        stored_dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        pooling=pooling or _saved_pooling(listed) or _default_pooling(config),
        pools_prompt=_pools_prompt(listed),
        normalize=listed.normalize,
        dense=listed.dense,
        dimensions=_count(saved_path, saved, "truncate_dim"),
        splade=_splade(listed, kept=_count(saved_path, saved, "max_active_dims")),
        activation=_activation(inner, config, saved),
        max_length=_max_length(inner, settings, positions),
        positions=positions,
        prompts=prompts,
        default_prompt=default_prompt,
        truncation_direction=tokenizer.direction,
        tokenizer_json=tokenizer.data,
    )


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


def _warn_of_code(path: Path, config: dict[str, Any]) -> None:
    """Say that the folder's own class of model, which may work otherwise, is not the one that runs."""
    if any(name.startswith("AutoModel") for name in mapping(path, config, "auto_map")):
        log.warning(
            "auto_map names code of the model's own, which is not run: Transformers' class may give other numbers",
            extra={"file": str(path), "model_type": str(config.get("model_type"))},
        )


def _check_labels(path: Path, config: dict[str, Any]) -> None:
    labels = mapping(path, config, "id2label")
    missing = [i for i in range(len(labels)) if str(i) not in labels]
    if missing:
        raise ConfigError(f"{path}: id2label must count the labels from 0, and has no {missing[0]}")


def _saved_pooling(listed: Modules) -> str:
    if listed.pooling is None:
        return ""
    path = listed.pooling / "config.json"
    config = read_json(path, required=True)
    mode = config.get("pooling_mode") or [name for key, name in _OLD_POOLING_KEYS.items() if config.get(key)]
    modes = [mode] if isinstance(mode, str) else mode or ["mean"]
    for name in modes:
        if name not in POOLINGS:
            raise ConfigError(f"{path}: pooling {name} is not supported, only {', '.join(POOLINGS)}")
    return "+".join(modes)


def _pools_prompt(listed: Modules) -> bool:
    config = read_json(listed.pooling / "config.json") if listed.pooling else {}
    return bool(config.get("include_prompt", True))


def _default_pooling(config: dict[str, Any]) -> str:
    """What sentence-transformers does without modules.json, so that both give the same vectors for the same folder.

    TEI instead takes the first token of anything named Bert and refuses the rest.
    """
    causal = _architecture(config).endswith("ForCausalLM") and config.get("is_causal", True)
    return "lasttoken" if causal else "mean"


def _splade(listed: Modules, kept: int) -> Splade:
    if listed.splade is None:
        return Splade(kept=kept)
    path = listed.splade / "config.json"
    config = read_json(path, required=True)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in get_args(SparseActivation):
        raise ConfigError(f"{path}: pooling {strategy} of {activation} is not supported")
    return Splade(strategy == "sum", activation, kept)


def _prompts(path: Path, saved: dict[str, Any], task: Task) -> tuple[dict[str, str], str]:
    """The prompts, and the name of the default one. To sentence-transformers null is an empty prompt."""
    embeds = task not in _LABELLED
    prompts = {name: "" if text is None else text for name, text in mapping(path, saved, "prompts").items()}
    for name, text in prompts.items():
        if not isinstance(text, str):
            raise ConfigError(f"{path}: prompt {name} must be a string, not {text!r}")
    if embeds:
        prompts = dict.fromkeys(_EMPTY_PROMPTS, "") | prompts
    default = str(saved.get("default_prompt_name") or "")
    if default and default not in prompts:
        raise ConfigError(f"{path}: the default prompt {default} is not one of the prompts")
    if default and not embeds:
        raise ConfigError(f"{path}: a default prompt is supported for embeddings only")
    # One that puts nothing before a text is none: ids that a caller gives are then taken as they are.
    return prompts, default if prompts.get(default) else ""


def _activation(folder: Path, config: dict[str, Any], saved: dict[str, Any]) -> Activation:
    """Where sentence-transformers keeps a cross-encoder's activation: newest place first."""
    name = (
        saved.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
        or ""
    )
    known: dict[str, Activation] = {
        "": "",
        "softmax": "softmax",
        "sigmoid": "sigmoid",
        "identity": "identity",
    }
    found = known.get(str(name).rpartition(".")[2].lower())
    if found is None:
        raise ConfigError(f"{folder}: the activation {name} is not supported")
    return found


def _count(path: Path, saved: dict[str, Any], key: str) -> int:
    count = whole(path, saved, key)
    if count < 1 and saved.get(key) is not None:
        raise ConfigError(f"{path}: {key} must be 1 or more, not {count}")
    return count


def _positions(path: Path, config: dict[str, Any]) -> int:
    if config.get("model_type") in _RELATIVE:
        return 0
    return max(whole(path, config, "max_position_embeddings") or whole(path, config, "n_positions"), 0)


def _max_length(folder: Path, settings: TransformerSettings, positions: int) -> int:
    """The saved max_seq_length, else the tokenizer's, never more than there are positions."""
    path = folder / "tokenizer_config.json"
    length = settings.max_length or whole(path, read_json(path), "model_max_length")
    # Tokenizers without a limit are saved with int(1e30).
    return min((n for n in (length, positions) if 0 < n < 1 << 31), default=_FALLBACK_LENGTH)


def _check_task(settings: TransformerSettings, task: Task) -> None:
    if settings.task not in ("", _SAVED_TASKS[task]):
        raise ConfigError(f"{settings.path}: transformer_task {settings.task} is not supported here")
