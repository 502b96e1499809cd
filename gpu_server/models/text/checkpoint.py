"""What a text model's folder says about itself: its task, pooling, lengths, prompts, tokenizer. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gpu_server.errors import ConfigError, ModelFolderMissing
from gpu_server.models.text import modules
from gpu_server.models.text.modules import Modules, read_json
from gpu_server.wire.documents import Activation

Task = Literal["embedding", "multi_vector", "sparse", "scores", "token_classifier"]
SparseActivation = Literal["relu", "log1p_relu"]
POOLINGS = ("cls", "mean", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
SPLADE = "splade"

_FALLBACK_LENGTH = 512
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


@dataclass(frozen=True)
class Splade:
    """How token logits become a sparse vector; `total` adds up the tokens where others take the largest."""

    total: bool = False
    activation: SparseActivation = "relu"


@dataclass(frozen=True)
class Checkpoint:
    """Facts of one model folder.

    folder: holds config.json, the weights and tokenizer.json. stored_dtype: as config.json has it, or "".
    pooling: one of POOLINGS, or several joined by "+". pools_prompt: whether a prompt's tokens take part in it.
    dense: folders of the Dense modules. activation: of scores, as sentence-transformers saved it, or "".
    max_length: longest item in tokens, special tokens included. positions: as config.json counts them, 0 if it does
    not; a family may reserve some of them. prompts: text by name; default_prompt: one of these names, or "".
    """

    folder: Path
    task: Task
    stored_dtype: str
    pooling: str
    pools_prompt: bool
    normalize: bool
    dense: tuple[Path, ...]
    splade: Splade
    activation: Activation
    max_length: int
    positions: int
    prompts: dict[str, str]
    default_prompt: str
    tokenizer_json: bytes = field(repr=False)


def task_of(folder: Path, pooling: str = "") -> Task:
    """What a folder's model is for. `pooling`, if given, makes an embedding model of it, or with "splade" a sparse one.

    Raises ConfigError, ModelFolderMissing.
    """
    listed = modules.read(folder)
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
    listed = modules.read(folder)
    inner = listed.transformer
    config = read_json(inner / "config.json", required=True)
    settings = read_json(inner / "sentence_bert_config.json")
    saved = read_json(folder / "config_sentence_transformers.json")
    task = task_of(folder, pooling)
    _check_task(inner, settings, task)
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 0)
    default_prompt = saved.get("default_prompt_name") or ""
    if default_prompt and task in ("scores", "token_classifier"):
        raise ConfigError(f"{folder}: a default prompt is supported for embeddings only")
    return Checkpoint(
        folder=inner,
        task=task,
        stored_dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        pooling=pooling or _saved_pooling(listed) or _default_pooling(config),
        pools_prompt=_pools_prompt(listed),
        normalize=listed.normalize,
        dense=listed.dense,
        splade=_splade(listed),
        activation=_activation(inner, config, saved),
        max_length=_max_length(inner, settings, positions),
        positions=max(positions, 0),
        prompts=dict(saved.get("prompts") or {}),
        default_prompt=default_prompt,
        tokenizer_json=_tokenizer(inner, lowercase=bool(settings.get("do_lower_case"))),
    )


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


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


def _splade(listed: Modules) -> Splade:
    if listed.splade is None:
        return Splade()
    path = listed.splade / "config.json"
    config = read_json(path, required=True)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in get_args(SparseActivation):
        raise ConfigError(f"{path}: pooling {strategy} of {activation} is not supported")
    return Splade(strategy == "sum", activation)


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
    found = known.get(name.rpartition(".")[2].lower())
    if found is None:
        raise ConfigError(f"{folder}: the activation {name} is not supported")
    return found


def _max_length(folder: Path, settings: dict[str, Any], positions: int) -> int:
    """The saved max_seq_length, else the tokenizer's, never more than there are positions."""
    length = settings.get("max_seq_length")
    length = length or read_json(folder / "tokenizer_config.json").get("model_max_length")
    # Tokenizers without a limit are saved with int(1e30).
    limits = [int(n) for n in (length, positions) if n and 0 < n < 1 << 31]
    return min(limits, default=_FALLBACK_LENGTH)


def _check_task(folder: Path, settings: dict[str, Any], task: Task) -> None:
    saved = settings.get("transformer_task", _SAVED_TASKS[task])
    if saved != _SAVED_TASKS[task]:
        raise ConfigError(
            f"{folder / 'sentence_bert_config.json'}: transformer_task {saved} is not supported here"
        )


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
