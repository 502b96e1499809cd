"""Joined pairs are those of the tokenizers library, for every kind of tokenizer, or are not made at all."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from gpu_server.errors import InvalidRequest
from gpu_server.pairs import PairJoiner, TypedRow, joiner, longest_first
from gpu_server.testing import byte_tokenizer
from gpu_server.tokenizing import Direction, TextTokenizer
from gpu_server.wire.documents import TextInfo

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "<s>", "</s>", *"abcdefghij", "What", "is", "it", "cat"]
SPECIAL = [("[CLS]", 1), ("[SEP]", 2)]


def word_tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def bert() -> Tokenizer:
    made = word_tokenizer()
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return made


def roberta() -> Tokenizer:
    made = word_tokenizer()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.post_processor = processors.RobertaProcessing(("</s>", 5), ("<s>", 4))
    return made


def sentencepiece() -> Tokenizer:
    """As XLM-RoBERTa's: no types, two tokens between the texts, a space before the first word."""
    made = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.0), ("b", -3.0), ("▁b", -1.5)], 0)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 5), ("</s>", 6)]
    )
    return made


def typed() -> Tokenizer:
    made = Tokenizer.from_str(byte_tokenizer().decode())
    assert json.loads(made.to_str())["post_processor"]["type"] == "TemplateProcessing"
    return made


def backwards() -> Tokenizer:
    made = word_tokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="$A", pair="[CLS] $B:0 [SEP] $A:1", special_tokens=SPECIAL
    )
    return made


def repeating() -> Tokenizer:
    made = word_tokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="$A", pair="$A [SEP] $B:1 [SEP] $A", special_tokens=SPECIAL
    )
    return made


def without_pairs() -> Tokenizer:
    made = word_tokenizer()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=SPECIAL)
    return made


JOINED: list[Callable[[], Tokenizer]] = [bert, roberta, sentencepiece, typed, word_tokenizer, without_pairs]
MakeTokenizer = Callable[[], Tokenizer]
TEXT = st.text("abc dé猫", max_size=40)


def copies(make: MakeTokenizer) -> tuple[Tokenizer, Tokenizer]:
    return make(), make()


@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize("make", JOINED)
def test_joined_pairs_are_those_of_the_library(make: MakeTokenizer, direction: Direction) -> None:
    plain, cutting = copies(make)
    joins = joiner(plain, cutting, direction)
    assert joins is not None

    @settings(max_examples=40)
    @given(TEXT, st.lists(TEXT, min_size=1, max_size=4), st.integers(8, 30))
    def check(query: str, documents: list[str], max_length: int) -> None:
        pairs = [(query, document) for document in documents]
        cutting.enable_truncation(max_length, direction=direction)
        for tokenizer, limit in ((cutting, max_length), (plain, 0)):
            wanted = [TypedRow(e.ids, e.type_ids) for e in tokenizer.encode_batch(pairs)]
            assert joins.rows(pairs, limit) == wanted

    check()


@pytest.mark.parametrize("make", [backwards, repeating])
def test_where_joining_is_not_exact_the_library_does_it(make: MakeTokenizer) -> None:
    assert joiner(*copies(make), "right") is None
    data = make().to_str().encode()
    made = TextTokenizer(data, TextInfo(digest="", max_length=20, vocab_size=100))
    assert made.encode_pairs([("a", "b")] * 2) == made.encode_pairs([("a", "b")]) * 2


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40))
def test_what_is_kept_of_two_texts(first: int, second: int, room: int) -> None:
    if first + second <= room:
        return
    kept = longest_first(first, second, room)
    assert sum(kept) == room
    assert kept[0] <= first
    assert kept[1] <= second
    assert longest_first(5, 100, 20) == (5, 15)
    assert longest_first(100, 5, 20) == (15, 5)
    assert longest_first(30, 30, 21) == (10, 11)


def test_a_query_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Any]] = []
    rows = PairJoiner.rows

    def watched(self: PairJoiner, pairs: Any, *options: Any) -> list[TypedRow]:
        seen.append(list(pairs))
        return rows(self, pairs, *options)

    made = TextTokenizer(byte_tokenizer(), TextInfo(digest="", max_length=20, vocab_size=258))
    wanted = [*made.encode_pairs([("q", "ab")]), *made.encode_pairs([("q", "c" * 40)])]
    monkeypatch.setattr(PairJoiner, "rows", watched)
    assert made.encode_pairs([("q", "ab"), ("q", "c" * 40)]) == wanted
    assert seen == [[("q", "ab"), ("q", "c" * 40)]]
    made.encode_pairs([("q", "ab"), ("r", "ab")])
    assert len(seen) == 1
    with pytest.raises(InvalidRequest, match="input 1 has 44 tokens, more than max_length = 20"):
        made.encode_pairs([("q", "ab"), ("q", "c" * 40)], truncate=False)


def test_texts_among_pairs_go_to_the_library() -> None:
    made = TextTokenizer(byte_tokenizer(), TextInfo(digest="", max_length=20, vocab_size=258))
    rows = made.encode_pairs([("q", "a"), ("q", "b"), "c"])
    assert rows[2] == TypedRow([256, 99, 257], [0, 0, 0])


def test_rows_that_will_be_refused_are_not_made() -> None:
    """A row copies its first text, which a request sends once for all its documents."""
    made = TextTokenizer(byte_tokenizer(), TextInfo(digest="", max_length=512, vocab_size=258))
    made.prepare()
    pairs = [("q" * 20_000, "d")] * 100
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="input 0 has 20004 tokens, more than max_length = 512"):
            made.encode_pairs(pairs, truncate=False)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 << 20, "the rows alone are 32 MB"
