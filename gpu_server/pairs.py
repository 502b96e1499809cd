"""Pairs of texts joined from texts tokenised one by one, so that a query is tokenised once for all its documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Pair = tuple[str, str]

_CHECK_LENGTH = 24
_SHORT, _OTHER, _HALF, _LONG = "What is it?", "A cat, née 猫.", "a b " * 7, "b a " * 40
_CHECKS: list[Pair] = [
    (_SHORT, _OTHER), ("", _OTHER), (_SHORT, ""), (_SHORT, _LONG), (_LONG, _SHORT), (_HALF, _HALF), (_HALF, _LONG),
    (_LONG, _HALF), (_LONG, _LONG), ("", _LONG), (_LONG, ""),
]  # fmt: skip


class TypedRow(NamedTuple):
    """One item's token ids, and for each of them which text of a pair it comes from."""

    ids: list[int]
    type_ids: list[int]


class PairJoiner:
    """Makes the rows that a tokenizer makes of pairs; `sample` is its encoding of any pair of texts with tokens.

    Raises ValueError if the texts of the sample do not lie one after the other.
    """

    def __init__(self, plain: Tokenizer, sample: Encoding, from_left: bool) -> None:
        """plain: cuts nothing off. from_left: whether it is the beginning of a text that is cut."""
        self._plain = plain
        self._from_left = from_left
        owners = sample.sequence_ids
        a, b = owners.index(0), owners.index(1)
        a_end, b_end = a + owners.count(0), b + owners.count(1)
        if owners[a:a_end] != [0] * (a_end - a) or owners[b:b_end] != [1] * (b_end - b) or a > b:
            raise ValueError("the texts of a pair do not lie one after the other")
        cuts = ((0, a), (a_end, b), (b_end, len(owners)))
        self._before, self._between, self._after = (
            TypedRow(sample.ids[start:end], sample.type_ids[start:end]) for start, end in cuts
        )
        self._types = sample.type_ids[a], sample.type_ids[b]
        self._added = len(owners) - (a_end - a) - (b_end - b)

    def rows(
        self, pairs: Sequence[Pair], max_length: int, check: Callable[[list[int]], None] | None = None
    ) -> list[TypedRow]:
        """Ids and types of each pair, at most `max_length` if that is not 0; each first text is tokenised once.

        check: is given the length that each row has uncut before any is made, and may raise: a row copies its first text.
        """
        firsts = {first: i for i, first in enumerate(dict.fromkeys(first for first, _ in pairs))}
        encodings = self._plain.encode_batch_fast(
            [*firsts, *(second for _, second in pairs)], add_special_tokens=False
        )
        ids = [encoding.ids for encoding in encodings]
        chosen, seconds = [ids[firsts[first]] for first, _ in pairs], ids[len(firsts) :]
        if check is not None:
            check([len(a) + len(b) + self._added for a, b in zip(chosen, seconds, strict=True)])
        room = max_length - self._added if max_length else 0
        return [self._join(a, b, room) for a, b in zip(chosen, seconds, strict=True)]

    def _join(self, first: list[int], second: list[int], room: int) -> TypedRow:
        if room and len(first) + len(second) > room:
            kept, also_kept = longest_first(len(first), len(second), room)
            first, second = self._cut(first, kept), self._cut(second, also_kept)
        before, between, after = self._before, self._between, self._after
        type_of_first, type_of_second = self._types
        return TypedRow(
            [*before.ids, *first, *between.ids, *second, *after.ids],
            [
                *before.type_ids, *[type_of_first] * len(first),
                *between.type_ids, *[type_of_second] * len(second), *after.type_ids,
            ],
        )  # fmt: skip

    def _cut(self, ids: list[int], kept: int) -> list[int]:
        return ids[len(ids) - kept :] if self._from_left else ids[:kept]


def joiner(plain: Tokenizer, cutting: Tokenizer, direction: Literal["left", "right"]) -> PairJoiner | None:
    """A joiner whose rows are those of the tokenizer itself, tried on pairs of all sorts; None if there is none.

    plain, cutting: the same tokenizer twice. `cutting` is left cutting at some length.
    """
    try:
        made = PairJoiner(plain, plain.encode(_SHORT, _OTHER), direction == "left")
        cutting.enable_truncation(_CHECK_LENGTH, direction=direction)
        for tokenizer, max_length in ((cutting, _CHECK_LENGTH), (plain, 0)):
            wanted = [TypedRow(e.ids, e.type_ids) for e in tokenizer.encode_batch(_CHECKS)]
            if made.rows(_CHECKS, max_length) != wanted:
                return None
    except Exception:  # noqa: BLE001 - the library raises nothing narrower where it takes no pairs
        return None
    return made


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept that have more than `room` together: the longer is cut first."""
    shorter = min(first, second)
    if 2 * shorter > room:
        half = room // 2, room - room // 2
        return half if first <= second else half[::-1]
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
