"""A folder's tokenizer.json with what its other files make of it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

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
_AS_SAVED = frozenset({"modernbert", "modernbert-decoder", "nystromformer"})
_BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "strip_accents": "strip_accents",
}


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
    data = path.read_bytes()
    spec, config = parse(path, dict), read_json(folder / "tokenizer_config.json")
    saved = spec.get("normalizer"), spec.get("post_processor")
    normalizer = _as_configured(saved[0], config, model)
    if settings.lowercase:
        steps = [{"type": "Lowercase"}, *([normalizer] if normalizer else [])]
        normalizer = {"type": "Sequence", "normalizers": steps}
    made = normalizer, _with_end(path, data, saved[1], config)
    if made != saved:
        spec |= {"normalizer": made[0], "post_processor": made[1]}
        data = json.dumps(spec, ensure_ascii=False).encode()
    side = settings.truncation_side or config.get("truncation_side")
    return TokenizerFile(data, _direction(path, side or mapping(path, spec, "truncation").get("direction")))


def _direction(path: Path, side: object) -> Direction:
    match str(side or "right").lower():
        case "right":
            return "right"
        case "left":
            return "left"
    raise ConfigError(f"{path}: texts are cut on the left or the right, not {side!r}")


def _as_configured(normalizer: Any, config: dict[str, Any], model: Mapping[str, Any]) -> Any:
    """The normalizer as these classes of Transformers make it anew from tokenizer_config.json, where that says anything."""
    kind = model.get("model_type")
    name = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    if kind in _AS_SAVED or (name not in _BERT_CLASSES and (name or kind not in _BERT_TYPES)):
        return normalizer
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return normalizer
    # null is a value of strip_accents: as `lowercase`.
    said = {
        key: config[option]
        for option, key in _BERT_OPTIONS.items()
        if isinstance(config.get(option), bool) or (option == "strip_accents" and option in config)
    }
    return {**normalizer, **said}


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
    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise ConfigError(f"{path} cannot be used: {error}") from None
    return tokenizer.encode("a").ids, tokenizer.token_to_id(token)
