"""Whether a loaded encoder may run packed: it must give each sequence what it gives it alone, whatever stands beside it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_server.errors import EngineStartFailed
from gpu_server.models import device_errors
from gpu_server.models.text.batch import Batch
from gpu_server.models.text.encoder import Encoder
from gpu_server.models.text.graphs import Inputs

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Longer texts are not part of the probe, which runs more than once.
_LONGEST_PROBE = 512
_NEIGHBOUR = 1
_PAST = 9
"""How far texts reach past what a model looks at."""
_LONGEST_ON_CPU = 1024
"""Past a width beyond this a large model would take minutes on a CPU: there it runs padded, unchecked."""
# How many tokens a model looks at, by what the configs of Transformers call it.
_WIDTHS = (
    "sliding_window", "sliding_window_size", "window_size", "attention_window", "attention_window_size",
    "attention_chunk_size", "local_attention", "local_attn_chunk_length", "lsh_attn_chunk_length", "index_topk",
)  # fmt: skip


class WrongDtype(EngineStartFailed):
    """The model does not run in this number type; it may in another."""


Probe = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Ids laid end to end, and the lengths of their sequences."""
States = Callable[[Inputs], torch.Tensor]
"""Hidden states `[tokens, hidden_size]`."""


@torch.inference_mode()
def choose(encoder: Encoder, max_length: int, *, packed: bool = True) -> None:
    """Set the encoder to packed where that is right and `packed` allows it, else to padded.

    Raises WrongDtype if the model gives no finite numbers, or none, in its dtype; EngineStartFailed if it is wrong in a
    padded batch too.
    """
    ids, lengths = probe(encoder, max_length)
    encoder.use("padded")
    alone = one_by_one(encoder, encoder, each(encoder, ids, lengths))
    if packed and _packs(encoder, ids, lengths, alone) and _packs_past_width(encoder, max_length):
        return
    if packed:
        log.info("runs padded: packed, a text does not get what it gets alone, or it is too long to know")
    encoder.use("padded")
    if not _agrees(_in_one_batch(encoder, encoder.pack(ids, lengths)), alone):
        dtype = _name(encoder.dtype)
        raise EngineStartFailed(f"the model does not give the same numbers in a batch as alone ({dtype})")


def one_by_one(
    encoder: Encoder, run: Callable[[Batch], torch.Tensor], batches: Sequence[Batch]
) -> list[torch.Tensor]:
    """What `run` makes of each batch. Raises WrongDtype if it gives no finite numbers, or none, in the encoder's dtype."""
    try:
        made = [run(batch) for batch in batches]
    except RuntimeError as error:
        device_errors.pass_on(error)
        if encoder.dtype == torch.float32:
            raise
        reason = str(error).partition("\n")[0]
        raise WrongDtype(
            f"the model does not run in {_name(encoder.dtype)}: {reason}; set dtype to float32"
        ) from error
    if all(bool(torch.isfinite(rows).all()) for rows in made):
        return made
    if encoder.dtype == torch.float32:
        raise WrongDtype("the model gives numbers that are not finite in float32: its weights are of no use")
    wider = "bfloat16 or float32" if encoder.dtype == torch.float16 else "float32"
    raise WrongDtype(f"the model overflows in {_name(encoder.dtype)}: set dtype to {wider}")


def probe(encoder: Encoder, max_length: int, times: int = 1) -> Probe:
    """Random ids of a few sequences laid end to end, and their lengths; `times` as many."""
    lengths = np.tile(_lengths(encoder, max_length), times)
    return _random_ids(encoder, int(lengths.sum())), lengths


def some_types(encoder: Encoder, tokens: int) -> NDArray[np.int32]:
    """Random token types."""
    return np.random.default_rng(2).integers(0, encoder.token_types, tokens, dtype=np.int32)


def each(
    encoder: Encoder,
    ids: NDArray[np.int32],
    lengths: NDArray[np.int64],
    types: NDArray[np.int32] | None = None,
) -> list[Batch]:
    """Each sequence as a batch of its own."""
    ends = np.cumsum(lengths)
    rows = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return [
        encoder.pack(ids[row], lengths[i : i + 1], None if types is None else types[row])
        for i, row in enumerate(rows)
    ]


def outputs_agree(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether two ways to run give the same outputs, row by row, within what `dtype` allows."""
    return all(
        bool((row_errors(a, b) <= TOLERANCE[dtype]).all()) and len(a) == len(b)
        for a, b in zip(got, want, strict=True)
    )


def errors_to_float32(encoder: Encoder, probe: Probe, states: States) -> tuple[float, float]:
    """Relative error of the encoder's own forward, and of `states`, to the same weights in float32."""
    ids, lengths = probe
    wide = Encoder(copy.deepcopy(encoder.model).float(), encoder.device)
    wide.use(encoder.runs)
    want = torch.cat([wide(one) for one in each(wide, ids, lengths)])
    batch = encoder.pack(ids, lengths)
    ends = torch.from_numpy(np.repeat(np.cumsum(lengths), lengths).astype(np.int32)).to(encoder.device)
    starts = ends - torch.from_numpy(np.repeat(lengths, lengths).astype(np.int32)).to(encoder.device)
    inputs = Inputs(batch.ids, batch.positions, None, (starts, ends), batch.layout.offsets)
    return _distance(encoder(batch), want), _distance(states(inputs), want)


def row_errors(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Norm of each row's difference over its norm, or over that of all where it is larger: a logit may be near 0.

    NaN if either holds one.
    """
    apart = (got.float() - want.float()).flatten(1).norm(dim=1)
    norms = want.float().flatten(1).norm(dim=1)
    errors: torch.Tensor = apart / norms.maximum(norms.mean()).clamp_min(1e-12)
    return errors


def _packs(
    encoder: Encoder, ids: NDArray[np.int32], lengths: NDArray[np.int64], alone: list[torch.Tensor]
) -> bool:
    try:
        encoder.use("packed")
        packed = encoder(encoder.pack(ids, lengths))
        changed = encoder(encoder.pack(_with_other_neighbour(encoder, ids, lengths), lengths))
    except (RuntimeError, TypeError, ValueError) as error:
        device_errors.pass_on(error)
        return False
    return _agrees(packed, alone) and _isolated(packed, changed, lengths)


def _packs_past_width(encoder: Encoder, max_length: int) -> bool:
    """Whether a text longer than the model looks back is right too, in the tokens that do not see all before them."""
    width = _width(encoder, max_length)
    if not width:
        return True
    if encoder.device.type == "cpu" and width > _LONGEST_ON_CPU:
        return False
    # In half precision a few tokens too many among hundreds would not show.
    past = _PAST if encoder.dtype == torch.float32 else max(width, _PAST)
    length = min(width + past, max_length)
    text = encoder.pack(_random_ids(encoder, length), np.array([length]))
    try:
        encoder.use("padded")
        want = encoder(text)[width:]
        encoder.use("packed")
        return _distance(encoder(text)[width:], want) <= TOLERANCE[encoder.dtype]
    except (RuntimeError, TypeError, ValueError) as error:
        device_errors.pass_on(error)
        return False


def _in_one_batch(encoder: Encoder, batch: Batch) -> torch.Tensor:
    """The padded forward without the pieces that would part a short text from a long one."""
    hidden: torch.Tensor = encoder.model(**encoder.padded(batch)).last_hidden_state
    return hidden.flatten(0, 1)[batch.layout.cells]


def _agrees(flat: torch.Tensor, alone: list[torch.Tensor]) -> bool:
    """Compared sequence by sequence: in one norm over all, a long one would hide a short one."""
    pairs = zip(torch.split(flat, [len(rows) for rows in alone]), alone, strict=True)
    return all(_distance(got, want) <= TOLERANCE[flat.dtype] for got, want in pairs)


def _isolated(packed: torch.Tensor, changed: torch.Tensor, lengths: NDArray[np.int64]) -> bool:
    """Other tokens in one sequence must not move the others, by far less than rounding allows `_agrees`.

    This finds layers that mix tokens without going through the attention function, however little they do.
    """
    pairs = zip(*(torch.split(flat, lengths.tolist()) for flat in (packed, changed)), strict=True)
    others = [pair for i, pair in enumerate(pairs) if i != _NEIGHBOUR]
    return all(_distance(after, before) <= TOLERANCE[packed.dtype] / 100 for before, after in others)


def _distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference over the norm; NaN, which no limit admits, if either holds one."""
    return float((got.float() - want.float()).norm() / want.float().norm().clamp_min(1e-12))


def _lengths(encoder: Encoder, max_length: int) -> NDArray[np.int64]:
    past_width = _width(encoder, max_length) + _PAST
    last = past_width if past_width <= _LONGEST_PROBE else 11
    return np.array([min(n, max_length) for n in (5, 19, 1, 40, 64, last)])


def _width(encoder: Encoder, max_length: int) -> int:
    """The most tokens that the model looks back, of what texts may be longer than; 0 where it sees whole texts."""
    config = encoder.model.config.get_text_config()
    # ModernBERT's is a property, which to_dict leaves out.
    computed = [
        getattr(config, name) for name in _WIDTHS if isinstance(getattr(type(config), name, None), property)
    ]
    widths = [*_named(config.to_dict()), *(width for width in computed if isinstance(width, int))]
    return max((width for width in widths if 0 < width < max_length), default=0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named(value: Any) -> Iterator[int]:
    """Each width in a config, those of single layers too."""
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        found = inner if isinstance(inner, list) else [inner]
        yield from (width for width in found if name in _WIDTHS and isinstance(width, int))
        yield from _named(inner)


def _random_ids(encoder: Encoder, count: int, seed: int = 0) -> NDArray[np.int32]:
    ids = np.random.default_rng(seed).integers(0, encoder.vocab_size - 1, count, dtype=np.int32)
    return ids + (ids >= encoder.pad_id)


def _with_other_neighbour(
    encoder: Encoder, ids: NDArray[np.int32], lengths: NDArray[np.int64]
) -> NDArray[np.int32]:
    start, stop = lengths[:_NEIGHBOUR].sum(), lengths[: _NEIGHBOUR + 1].sum()
    changed: NDArray[np.int32] = ids.copy()
    changed[start:stop] = _random_ids(encoder, int(stop - start), seed=1)
    mask = getattr(encoder.model.config.get_text_config(), "mask_token_id", None)
    if mask is not None and 0 <= mask < encoder.vocab_size:
        # ESM scales every token by how many of its row are masked.
        changed[start] = mask
    return changed
