"""How many tokens a model's prompts have, for those that pool without them."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from gpu_server.errors import ConfigError
from gpu_server.models.text.checkpoint import Checkpoint
from gpu_server.models.text.encoder import quiet
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire.documents import TextInfo


def lengths(facts: Checkpoint, info: TextInfo) -> dict[str, int]:
    """Tokens of each prompt as sentence-transformers counts them: all but a special one at the end. Raises ConfigError."""
    special = _special_ids(facts.folder)
    tokenizer = TextTokenizer(facts.tokenizer_json, info)
    counted: dict[str, int] = {}
    for name, prompt in facts.prompts.items():
        if prompt:
            (ids,) = tokenizer.encode([""], prompt_name=name)
            counted[name] = len(ids) - (ids[-1] in special)
    return counted


def _special_ids(folder: Path) -> frozenset[int]:
    """Those that the tokenizer has names for, which are not all that tokenizer.json marks as special."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{folder}: no tokenizer to count prompts with: {error}") from None
    return frozenset(tokenizer.all_special_ids)
