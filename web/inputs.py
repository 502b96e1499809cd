"""Text inputs of a request: checked, then turned into token ids as TEI does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpu_server.errors import InvalidRequest
from gpu_server.tokenizing import Direction, Text, TextTokenizer
from web.errors import BadField, EmptyInput

Item = str | list[int]

# More characters than this per token are cut before tokenising: no text that matters has them, and it bounds the work.
CHARACTERS_PER_TOKEN = 250


def as_items(value: str | Sequence[int | str | list[int]], field: str) -> list[Item]:
    """The items of a body's `field`. Raises EmptyInput on an empty list or item, BadField on ids among texts."""
    if isinstance(value, str):
        value = [value]
    elif value and all(isinstance(v, int) for v in value):
        value = [value]  # type: ignore[list-item]
    if not value or value == [""]:
        raise EmptyInput(field)
    items: list[Item] = []
    for i, item in enumerate(value):
        if isinstance(item, int):
            raise BadField(
                f"{field}[{i}]", "a bare token id beside other items; put the ids of a text in a list"
            )
        if not item:
            raise EmptyInput(f"{field}[{i}]")
        items.append(item)
    return items


def as_texts(value: str | list[str], field: str) -> list[str]:
    """The texts of a body's `field`, one or many. Raises EmptyInput on an empty list or text."""
    texts = [value] if isinstance(value, str) else value
    if not texts or texts == [""]:
        raise EmptyInput(field)
    for i, text in enumerate(texts):
        if not text:
            raise EmptyInput(f"{field}[{i}]")
    return texts


def as_pairs(value: str | list[str | list[str]], field: str) -> tuple[bool, list[Text]]:
    """Texts and pairs of a body's `field`, and whether it is a single one.

    A string is one text, a flat list of two strings one pair; else each entry is a list of one or two strings. Raises
    EmptyInput and BadField naming the entry.
    """
    flat = isinstance(value, str) or (bool(value) and all(isinstance(v, str) for v in value))
    entries: list[Any] = [value] if flat else list(value)
    if not entries or value == "":
        raise EmptyInput(field)
    pairs: list[Text] = []
    for i, entry in enumerate(entries):
        name = field if flat else f"{field}[{i}]"
        parts = [entry] if isinstance(entry, str) else entry
        if isinstance(entry, str) and not flat:
            raise BadField(name, "a bare text beside lists; each entry is [text] or [text, text]")
        if len(parts) > 2:
            raise BadField(name, f"{len(parts)} texts, where one or a pair is expected")
        if not parts or "" in parts:
            raise EmptyInput(name)
        pairs.append(parts[0] if len(parts) == 1 else (parts[0], parts[1]))
    return flat, pairs


def cut_characters(
    texts: Sequence[Text], tokenizer: TextTokenizer, truncate: bool, direction: Direction | None
) -> list[Text]:
    """Texts and pairs without the characters that no token could need. Raises InvalidRequest where one must not be cut."""
    done: dict[str, str] = {}

    def cut(i: int, text: str) -> str:
        # A query stands in every pair, and each copy of it would cost its length.
        if text not in done:
            done[text] = _cut(i, text, tokenizer, truncate, direction)
        return done[text]

    return [
        cut(i, text) if isinstance(text, str) else (cut(i, text[0]), cut(i, text[1]))
        for i, text in enumerate(texts)
    ]


def token_ids(
    tokenizer: TextTokenizer,
    items: Sequence[Item],
    prompt_name: str,
    truncate: bool,
    direction: Direction | None,
) -> tuple[list[list[int]], int]:
    """Ids of each item, special tokens included, and the number of characters that they stand for.

    Items that came as ids are decoded and encoded again: after a prompt like any text, without one as they are, so that only
    the special tokens among the ids are there. Raises InvalidRequest as `TextTokenizer.encode` does.
    """
    given = [[] if isinstance(item, str) else item for item in items]
    prompted = bool(prompt_name or tokenizer.info.default_prompt)
    decoded = tokenizer.decode(given, skip_special=prompted) if any(given) else []
    texts = [item if isinstance(item, str) else decoded[i] for i, item in enumerate(items)]
    characters = sum(map(len, texts))
    texts = [_cut(i, text, tokenizer, truncate, direction) for i, text in enumerate(texts)]
    as_given = [i for i, ids in enumerate(given) if ids and not prompted]
    plain = tokenizer.tokenize([texts[i] for i in as_given], special=False) if as_given else []
    for i in as_given:
        texts[i] = ""
    rows = tokenizer.encode(texts, prompt_name=prompt_name, truncate=truncate, direction=direction)
    for i, encoding in zip(as_given, plain, strict=True):
        rows[i] = _fit(i, encoding.ids, tokenizer, truncate, direction)
    return rows, characters


def _cut(i: int, text: str, tokenizer: TextTokenizer, truncate: bool, direction: Direction | None) -> str:
    limit = tokenizer.info.max_length * CHARACTERS_PER_TOKEN
    if len(text) <= limit:
        return text
    if not truncate:
        raise _too_long(i, f"{len(text)} characters, more than the {limit} that", tokenizer)
    return text[:limit] if tokenizer.side(direction) == "right" else text[-limit:]


def _fit(
    i: int, ids: list[int], tokenizer: TextTokenizer, truncate: bool, direction: Direction | None
) -> list[int]:
    limit = tokenizer.info.max_length
    if len(ids) <= limit:
        return ids
    if not truncate:
        raise _too_long(i, f"{len(ids)} tokens, more than", tokenizer)
    return ids[:limit] if tokenizer.side(direction) == "right" else ids[-limit:]


def _too_long(i: int, size: str, tokenizer: TextTokenizer) -> InvalidRequest:
    return InvalidRequest(
        f"input {i} has {size} max_length = {tokenizer.info.max_length} tokens allows",
        {"item": i, "limit": "max_length"},
    )
