"""Token labels to entities, as Hugging Face's pipelines make them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from gpu_server.scores import Scores

if TYPE_CHECKING:
    from tokenizers import Encoding

Entity = dict[str, Any]


def labelled(text: str, encoding: Encoding, scores: Scores, labels: Sequence[str]) -> list[Entity]:
    """The likeliest label of each token that is not special; `start` and `end` count characters of the text."""
    best = scores.argmax(axis=1)
    return [
        {
            "entity": labels[best[i]],
            "score": scores[i, best[i]],
            "index": i,
            "word": text[start:end],
            "start": start,
            "end": end,
        }
        for i, (start, end) in enumerate(encoding.offsets)
        if not encoding.special_tokens_mask[i]
    ]


def group(text: str, tokens: Sequence[Entity], ignored: Collection[str]) -> list[Entity]:
    """Neighbouring tokens of one kind as one entity with their mean score; a B- label begins a new one."""
    groups: list[list[Entity]] = []
    for token in tokens:
        last = groups[-1][-1] if groups else None
        continues = last is not None and token["index"] == last["index"] + 1 and _follows(token, last)
        if continues:
            groups[-1].append(token)
        else:
            groups.append([token])
    return [_entity(text, found) for found in groups if found[0]["entity"] not in ignored]


def _follows(token: Entity, last: Entity) -> bool:
    return not token["entity"].startswith("B-") and _kind(token) == _kind(last)


def _kind(token: Entity) -> str:
    """A label without the B- or I- before it."""
    name: str = token["entity"]
    return name[2:] if name[:2] in ("B-", "I-") else name


def _entity(text: str, found: Sequence[Entity]) -> Entity:
    start, end = found[0]["start"], found[-1]["end"]
    return {
        "entity_group": _kind(found[0]),
        "score": sum(float(token["score"]) for token in found) / len(found),
        "word": text[start:end],
        "start": start,
        "end": end,
    }
