"""Texts that embeddings are compared on: every kind of length and script, each with the vector it should get."""

from __future__ import annotations

import random
from typing import Any, Protocol

# Each is one token of the model's vocabulary, so that a text's length in tokens is known.
WORDS = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother",
    "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business",
    "issue", "side", "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end",
    "member", "law", "car", "city", "name", "president", "team", "minute", "idea", "kid", "body", "information",
    "back", "parent", "face", "others", "level", "office", "door", "health", "person", "art", "war", "history",
    "party", "result", "change", "morning", "reason", "research", "girl", "guy",
]  # fmt: skip
WORD_COUNTS = [*range(1, 41), *range(45, 250, 6), 252, 253, 254]

ODD = [
    " ", "\n", "\t \r\n", ".", "?!", "…", "\u200b", "\ufeff",
    "naïve café, façade", "nai\u0308ve cafe\u0301, fac\u0327ade", "Straße ẞ ﬁ ½ ™ Å Å",
    "Z̸̢̛a̵l̷g̶o̴ t̶e̸x̵t̶", "é" * 3 + "e\u0301" * 3, "a\u0301\u0327\u0308" * 20,
    "🙂", "👩‍👩‍👧‍👦 family", "🏳️‍🌈🇩🇪👍🏽 flags", "I ❤️ NY 😀😃😄",
    "שלום עולם", "مرحبا بالعالم", "mixed שלום and مرحبا text", "\u202eright to left\u202c override",
    "你好，世界", "こんにちは世界", "안녕하세요 세계", "自然言語処理 is fun", "กรุงเทพ", "Привет, мир", "Γειά σου Κόσμε",
    "नमस्ते दुनिया",
    "\x00", "nul\x00inside", "bell\x07 escape\x1b[31m", "\x7f\x80\x9f", "tab\tand\nnewline\r\n", "\u2028line\u2029paragraph",
    "\U0010ffff\ufffd", "\ue000 private use", "x" * 99, "y" * 101, "_" * 300, "https://example.org/a?b=c&d=%20#e",
    "[CLS] [SEP] [MASK] [PAD] [UNK]", "##ing ##ed", '{"json": ["a", 1, null]}', "<b>&amp;</b>", "'; DROP TABLE texts; --",
    "3.14159 1e-10 0x7f 1,000,000", "\\u0041 \\n", "MiXeD CaSe", "   spaces   around   ",
]  # fmt: skip


class Comparison(Protocol):
    """Asserts that vectors are those of their texts, and returns the largest difference of an element."""

    def __call__(self, texts: list[str], vectors: Any) -> float: ...


def of_length(words: int) -> str:
    """A text of that many words, each of one token; always the same."""
    return " ".join(random.Random(words).choices(WORDS, k=words))


OVER_LONG = [of_length(255), of_length(256), of_length(700), "人" * 900, "word " * 20_000]
SERVE_CHECK = ["A man is eating food.", "A man eats something."]
TEXTS = [*map(of_length, WORD_COUNTS), *ODD, *OVER_LONG, *SERVE_CHECK]


def batches(seed: int, largest: int = 32) -> list[list[str]]:
    """The whole corpus in random order, cut into batches of random size."""
    draw = random.Random(seed)
    left = draw.sample(TEXTS, len(TEXTS))
    cut = []
    while left:
        size = draw.randint(1, largest)
        cut.append(left[:size])
        left = left[size:]
    return cut
