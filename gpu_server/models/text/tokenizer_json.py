"""A folder's tokenizer.json with what its other files make of it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from gpu_server.errors import ConfigError, ModelFolderMissing
from gpu_server.models.text.modules import mapping, parse, read_json
from gpu_server.models.text.transformer_settings import TransformerSettings
from gpu_server.tokenizing import Direction

_BERT_CLASSES = frozenset(
    f"{name}Tokenizer" for name in ("Bert", "DistilBert", "Electra", "MobileBert", "MPNet")
)
# The kinds of model that have one of these classes where tokenizer_config.json names none.
_BERT_TYPES = frozenset({
    "bert", "convbert", "distilbert", "electra", "ernie", "layoutlm", "megatron-bert", "mobilebert", "mpnet", "nomic_bert",
    "squeezebert",
})  # fmt: skip
# Kinds of model whose tokenizer Transformers takes as it is saved, whatever class is named.
_AS_SAVED = frozenset({
    "gpt_bigcode", "granite", "granitemoe", "ministral", "mistral", "mixtral", "modernbert", "modernbert-decoder",
    "nemotron", "nystromformer", "olmo2", "olmo3", "phi3", "phimoe", "stablelm", "xlm-roberta-xl",
})  # fmt: skip
_BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "strip_accents": "strip_accents",
}
# The same of tokenizers of bytes, for which `add_prefix_space` counts.
_BYTE_CLASSES = frozenset(
    f"{name}Tokenizer"
    for name in (
        "Bart", "Blenderbot", "CodeGen", "Cohere", "Deberta", "GPT2", "GPTNeoX", "LED", "Longformer", "Luke", "Mvp",
        "Qwen2", "Roberta",
    )
)  # fmt: skip
_BYTE_TYPES = frozenset({
    "codegen", "cohere", "cohere2", "data2vec-text", "deberta", "gpt2", "gpt_neo", "gpt_neox", "gptj", "ibert", "lilt",
    "longformer", "luke", "mra", "olmo", "olmoe", "opt", "phi", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "roberta",
    "roberta-prelayernorm", "starcoder2",
})  # fmt: skip
_TRAITS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_STEPS = ("normalizer", "pre_tokenizer", "post_processor")


class TokenizerFile(NamedTuple):
    """A tokenizer.json as it is handed out, and the side on which over-long texts are cut."""

    data: bytes
    direction: Direction


def read(folder: Path, model: Mapping[str, Any], settings: TransformerSettings) -> TokenizerFile:
    """tokenizer.json as it is, or changed as tokenizer_config.json and the settings say.

    model: config.json. Raises ModelFolderMissing, ConfigError.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFolderMissing(f"{path} is missing: a text model needs a fast tokenizer's tokenizer.json")
    config_path = folder / "tokenizer_config.json"
    data, spec, config = path.read_bytes(), parse(path, dict), read_json(config_path)
    if missing := _missing_tokens(config_path, config, spec):
        data = _with_tokens(path, data, missing)
        spec = json.loads(data)
    saved = {step: spec.get(step) for step in _STEPS}
    made = saved | _as_configured(saved, config, model)
    if settings.lowercase:
        steps = [{"type": "Lowercase"}, *([made["normalizer"]] if made["normalizer"] else [])]
        made["normalizer"] = {"type": "Sequence", "normalizers": steps}
    made["post_processor"] = _with_end(path, data, made["post_processor"], config)
    if made != saved:
        data = json.dumps(spec | made, ensure_ascii=False).encode()
    side = settings.truncation_side or config.get("truncation_side")
    return TokenizerFile(data, _direction(path, side or mapping(path, spec, "truncation").get("direction")))


def _direction(path: Path, side: object) -> Direction:
    match str(side or "right").lower():
        case "right":
            return "right"
        case "left":
            return "left"
    raise ConfigError(f"{path}: texts are cut on the left or the right, not {side!r}")


def _as_configured(
    saved: Mapping[str, Any], config: dict[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """The steps that classes of Transformers make anew from tokenizer_config.json, where that says anything."""
    kind = str(model.get("model_type"))
    name = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    if kind in _AS_SAVED:
        return {}
    if name in _BERT_CLASSES or (not name and kind in _BERT_TYPES):
        return {"normalizer": _as_bert(saved["normalizer"], config)}
    space = config.get("add_prefix_space")
    if isinstance(space, bool) and (name in _BYTE_CLASSES or (not name and kind in _BYTE_TYPES)):
        # RoBERTa's post-processor takes that space out of the first token's offsets again.
        kinds = {"pre_tokenizer": "ByteLevel", "post_processor": "RobertaProcessing"}
        return {step: _spaced(saved[step], kind, space) for step, kind in kinds.items()}
    return {}


def _spaced(step: Any, kind: str, space: bool) -> Any:
    """A step, told whether a space is put before a text where it is of that kind."""
    if not isinstance(step, dict):
        return step
    if isinstance(step.get("pretokenizers"), list):
        return {**step, "pretokenizers": [_spaced(part, kind, space) for part in step["pretokenizers"]]}
    return {**step, "add_prefix_space": space} if step.get("type") == kind else step


def _as_bert(normalizer: Any, config: dict[str, Any]) -> Any:
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return normalizer
    # null is a value of strip_accents: as `lowercase`.
    said = {
        key: config[option]
        for option, key in _BERT_OPTIONS.items()
        if isinstance(config.get(option), bool) or (option == "strip_accents" and option in config)
    }
    return {**normalizer, **said}


def _missing_tokens(path: Path, config: dict[str, Any], spec: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens of tokenizer_config.json that tokenizer.json has not, or has otherwise, by their ids there."""
    listed = mapping(path, config, "added_tokens_decoder")
    if not listed:
        return []
    saved = spec.get("added_tokens")
    # What is no token here is for the library to complain of.
    tokens_there = [token for token in saved if isinstance(token, dict)] if isinstance(saved, list) else []
    known = {str([token.get(trait) for trait in _TRAITS]) for token in tokens_there}
    try:
        tokens = [AddedToken(**_traits(mapping(path, listed, key))) for key in sorted(listed, key=int)]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: added_tokens_decoder cannot be used: {error}") from None
    return [token for token in tokens if str([getattr(token, trait) for trait in _TRAITS]) not in known]


def _traits(token: dict[str, Any]) -> dict[str, Any]:
    return {trait: token[trait] for trait in _TRAITS if trait in token}


def _with_tokens(path: Path, data: bytes, tokens: list[AddedToken]) -> bytes:
    tokenizer = _tokenizer(path, data)
    tokenizer.add_tokens(tokens)
    return tokenizer.to_str().encode()


def _with_end(path: Path, data: bytes, post_processor: Any, config: dict[str, Any]) -> Any:
    """The post-processor, made to add the end token where the folder's own tokenizer code, which is not run, adds it."""
    if config.get("add_eos_token") is not True or "AutoTokenizer" not in (config.get("auto_map") or {}):
        return post_processor
    end = config.get("eos_token")
    token = end.get("content") if isinstance(end, dict) else end
    ids, end_id = _ids_of_a_text(path, data, str(token))
    if end_id is not None and ids[-1:] == [end_id]:
        return post_processor
    if end_id is None or (post_processor or {}).get("type", "ByteLevel") != "ByteLevel":
        raise ConfigError(
            f"{path}: add_eos_token asks for the end token {token!r}, which cannot be added here"
        )
    return _sequence(post_processor, str(token), end_id)


def _sequence(post_processor: Any, token: str, token_id: int) -> dict[str, Any]:
    first, second = (
        [{"Sequence": {"id": text, "type_id": kind}}, {"SpecialToken": {"id": token, "type_id": kind}}]
        for kind, text in enumerate("AB")
    )
    special = {token: {"id": token, "ids": [token_id], "tokens": [token]}}
    template = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": special,
    }
    return {"type": "Sequence", "processors": [*([post_processor] if post_processor else []), template]}


def _ids_of_a_text(path: Path, data: bytes, token: str) -> tuple[list[int], int | None]:
    """Ids of some text, and the id of `token` if there is such a one."""
    tokenizer = _tokenizer(path, data)
    return tokenizer.encode("a").ids, tokenizer.token_to_id(token)


def _tokenizer(path: Path, data: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_str(data.decode())
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ConfigError(f"{path} cannot be used: {error}") from None
