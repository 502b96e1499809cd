"""`TextTokenizer` against the tokenizers library itself: ids, limits on both sides, prompts, threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpu_server import tokenizing
from gpu_server.errors import InvalidRequest, MissingDependency
from gpu_server.testing import byte_tokenizer
from gpu_server.tokenizing import Direction, TextTokenizer, available, digest, prompt_params
from gpu_server.wire.documents import TextInfo

DATA = byte_tokenizer()
TEXTS = ["", "a", "hello world", "ünïcödé", "x" * 50, "\n\t\0", "[CLS]"]


def tokenizer(**info: Any) -> TextTokenizer:
    return TextTokenizer(
        DATA, TextInfo(**{"digest": digest(DATA), "max_length": 10, "vocab_size": 258, **info})
    )


def direct(text: str, max_length: int | None = None, direction: str = "right") -> list[int]:
    made = Tokenizer.from_str(DATA.decode())
    if max_length is not None:
        made.enable_truncation(max_length, direction=direction)
    ids: list[int] = made.encode(text).ids
    return ids


@pytest.mark.parametrize("direction", ["left", "right"])
def test_ids_are_those_of_the_library(direction: Direction) -> None:
    rows = tokenizer().encode(TEXTS, direction=direction)
    assert rows == [direct(text, 10, direction) for text in TEXTS]
    assert max(map(len, rows)) == 10


def test_sides_of_truncation_differ_and_keep_the_special_tokens() -> None:
    shared = tokenizer()
    right, left = (shared.encode(["abcdefghijkl"], direction=d)[0] for d in ("right", "left"))
    assert right == [256, *b"abcdefgh", 257]
    assert left == [256, *b"efghijkl", 257]


def test_the_models_own_side_is_the_default() -> None:
    left = tokenizer(truncation_direction="left")
    assert left.encode(["abcdefghijkl"]) == tokenizer().encode(["abcdefghijkl"], direction="left")
    assert left.encode(["abcdefghijkl"], direction="right") == tokenizer().encode(["abcdefghijkl"])
    pairs = [("query", text) for text in ("abcdefghijkl", "mnopqrstuvw")]
    assert left.encode_pairs(pairs) == tokenizer().encode_pairs(pairs, direction="left")
    assert left.tokenize(["abcdefghijkl"], truncate=True)[0].tokens[-2] == "l"


def test_a_limit_in_the_file_itself_does_not_count() -> None:
    limited = Tokenizer.from_str(DATA.decode())
    limited.enable_truncation(4)
    limited.enable_padding(length=64)
    made = TextTokenizer(limited.to_str().encode(), TextInfo(digest="", max_length=10, vocab_size=258))
    assert made.encode(["abcdefghijkl", "a"]) == tokenizer().encode(["abcdefghijkl", "a"])
    assert len(made.encode(["abcdef"], truncate=False)[0]) == 8
    assert len(made.tokenize(["a" * 100])[0].ids) == 102


def test_without_truncation_an_over_long_text_is_named() -> None:
    assert tokenizer().encode(["a" * 8], truncate=False) == [direct("a" * 8)]
    with pytest.raises(InvalidRequest, match="input 1 has 11 tokens, more than max_length = 10") as error:
        tokenizer().encode(["a", "a" * 9], truncate=False)
    assert error.value.details == {"item": 1, "limit": "max_length"}


def test_prompts() -> None:
    made = tokenizer(prompts={"q": "Q:", "d": ""}, default_prompt="q")
    assert made.encode(["x"]) == made.encode(["x"], prompt_name="q") == [direct("Q:x")]
    assert made.encode(["x"], prompt_name="d") == [direct("x")]
    with pytest.raises(InvalidRequest, match="prompt_name 'z' is unknown; the model has: d, q"):
        made.encode(["x"], prompt_name="z")
    with pytest.raises(InvalidRequest, match="the model has: none"):
        tokenizer().encode(["x"], prompt_name="z")


def test_lengths_of_prompts_that_are_not_pooled() -> None:
    info = TextInfo(
        digest="", max_length=10, vocab_size=258, prompts={"q": "Q", "d": ""}, default_prompt="q",
        prompt_lengths={"q": 2},
    )  # fmt: skip
    assert prompt_params(info, "") == prompt_params(info, "q") == {"prompt_length": 2}
    assert prompt_params(info, "d") == {}


def test_threads_share_one_object() -> None:
    shared = tokenizer()
    expected = {d: [direct(text, 10, d) for text in TEXTS] for d in ("left", "right")}

    def work(number: int) -> bool:
        direction: Direction = "left" if number % 2 else "right"
        return all(shared.encode(TEXTS, direction=direction) == expected[direction] for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(32)))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_decoding_gives_the_text_back(texts: list[str]) -> None:
    made = tokenizer(max_length=10_000)
    kept = [text for text in texts if "[CLS]" not in text and "[SEP]" not in text]
    assert made.decode(made.encode(kept)) == kept


@pytest.mark.parametrize("row", [[258], [-1], [0, 2**40]])
def test_ids_outside_the_vocabulary_are_named(row: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="input 1 has a token id outside 0 … 257"):
        tokenizer().decode([[1], row])


def test_tokens_and_offsets() -> None:
    made = tokenizer()
    (plain,) = made.tokenize(["ab"], special=False)
    (full,) = made.tokenize(["ab"])
    assert (plain.ids, plain.offsets) == ([97, 98], [(0, 1), (1, 2)])
    assert full.tokens == ["[CLS]", "a", "b", "[SEP]"]


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert not available()
    with pytest.raises(MissingDependency, match="pip install tokenizers"):
        tokenizer()


PAIRS = [("a", "bc"), ("", "x"), ("x" * 50, "yy"), ("xx", "y" * 50), ("x" * 50, "y" * 40)]


@pytest.mark.parametrize("direction", ["left", "right"])
def test_pairs_are_those_of_the_library(direction: Direction) -> None:
    made = Tokenizer.from_str(DATA.decode())
    made.enable_truncation(10, strategy="longest_first", direction=direction)
    want = [(e.ids, e.type_ids) for e in made.encode_batch(PAIRS)]
    assert tokenizer().encode_pairs(PAIRS, direction=direction) == want
    assert want[0] == ([256, 97, 257, 98, 99, 257], [0, 0, 0, 1, 1, 1])


def test_inputs_of_texts_and_pairs() -> None:
    plain = tokenizer().inputs(["a", "b"])
    assert {name: [row.tolist() for row in tensor.rows()] for name, tensor in plain.items()} == {
        "input_ids": [[256, 97, 257], [256, 98, 257]]
    }
    typed = tokenizer().inputs(["a"], typed=True)
    assert typed["token_type_ids"].rows()[0].tolist() == [0, 0, 0]
    untyped = tokenizer().inputs([("a", "b")])
    assert [*untyped] == ["input_ids"]
    assert untyped["input_ids"].rows()[0].tolist() == [256, 97, 257, 98, 257]


def test_pairs_have_limits_and_no_prompts() -> None:
    with pytest.raises(InvalidRequest, match="input 1 has 13 tokens, more than max_length = 10"):
        tokenizer().encode_pairs([("a", "b"), ("a" * 5, "b" * 5)], truncate=False)
    with pytest.raises(InvalidRequest, match="prompt_name"):
        tokenizer().inputs([("a", "b")], prompt_name="query")


def test_tokens_of_what_fits() -> None:
    (whole,) = tokenizer().tokenize(["x" * 50])
    (cut,) = tokenizer().tokenize(["x" * 50], truncate=True)
    assert (len(whole), len(cut)) == (52, 10)
    assert cut.offsets[1] == (0, 1)


LONE = "\ud83d"
PLAIN, SHARED, OTHERS = ["a", LONE], [("q", "a"), ("q", LONE)], [("q", "a"), (LONE, "b")]


@pytest.mark.parametrize("truncate", [False, True])
def test_what_utf8_cannot_carry_is_named(truncate: bool) -> None:
    made = tokenizer(prompts={"q": "Q:"})
    calls: list[Callable[[], object]] = [
        partial(made.encode, PLAIN, truncate=truncate, first=6),
        partial(made.encode, PLAIN, truncate=truncate, first=6, prompt_name="q"),
        partial(made.encode_pairs, SHARED, truncate=truncate, first=6),
        partial(made.encode_pairs, OTHERS, truncate=truncate, first=6),
        partial(made.tokenize, ["a"] * 7 + [LONE], truncate=truncate),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="text 7 holds a lone surrogate") as error:
            call()
        assert error.value.details == {"item": 7}


def test_what_is_no_text_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="TextEncodeInput"):
        tokenizer().encode(["a", 5])  # type: ignore[list-item]


def test_what_is_no_side_is_refused() -> None:
    no_side: Any = "up"
    with pytest.raises(InvalidRequest, match="direction is 'up'; it must be left or right") as error:
        tokenizer().encode(["a"], direction=no_side)
    assert error.value.details == {"field": "direction"}


@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.tuples(st.text(max_size=6), st.text(max_size=6))), max_size=20
    )
)
def test_much_text_is_encoded_some_at_a_time_and_all_the_same(texts: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        whole = tokenizer().encode_pairs(texts)
        patched.setattr(tokenizing, "CHARACTERS_AT_ONCE", 10)
        assert tokenizer().encode_pairs(texts) == whole
        portions = list(tokenizing._portions(texts))
    assert [text for portion in portions for text in portion] == texts
    assert all(len(portion) <= 1 or sum(len("".join(text)) for text in portion) <= 10 for portion in portions)


@pytest.mark.parametrize(("text", "truncate"), [("x" * 30, False), ("\ud83d", True)])
def test_an_error_behind_the_first_portion_names_its_text(
    text: str, truncate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "CHARACTERS_AT_ONCE", 4)
    with pytest.raises(InvalidRequest) as raised:
        tokenizer().encode(["abc", "abc", text], truncate=truncate, first=5)
    assert raised.value.details["item"] == 7
