"""From token vectors to one vector an item, and to unit length."""

from __future__ import annotations

import torch

from gpu_server.models.text.triton_support import has_triton

_IN_KERNEL = frozenset({"cls", "mean", "lasttoken"})


def pool(hidden: torch.Tensor, offsets: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool flat hidden states `[tokens, dim]` of any dtype to float32 `[items, dim × poolings]`.

    pooling: one of `checkpoint.POOLINGS`, or several joined by "+", whose vectors are laid end to end.
    offsets: `[items + 1]`, where each item begins; an item without tokens (padding of a graph) gets any row.
    """
    vectors = [_pool(hidden, offsets, name) for name in pooling.split("+")]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


def pool_and_normalize(
    hidden: torch.Tensor, offsets: torch.Tensor, pooling: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pool`, and the same rows at unit length; both float32 `[items, dim]`."""
    if hidden.is_cuda and pooling in _IN_KERNEL and has_triton():
        from gpu_server.models.text import pooling_kernel

        return pooling_kernel.pool_and_normalize(hidden.contiguous(), offsets, pooling)
    vectors = pool(hidden, offsets, pooling)
    return vectors, normalized(vectors)


def pool_after(hidden: torch.Tensor, offsets: torch.Tensor, pooling: str, skip: int) -> torch.Tensor:
    """`pool`, as sentence-transformers leaves a prompt out: without the first `skip` tokens of each item.

    An item that has no others gets its first token, zeros, or where the largest counts −infinity.
    """
    places = torch.arange(len(hidden), device=hidden.device) - offsets.long()[owners(offsets, len(hidden))]
    kept = (places >= skip)[:, None]
    vectors = [_pool_kept(hidden, offsets, name, kept, places) for name in pooling.split("+")]
    return torch.cat(vectors, dim=1)


def normalized(vectors: torch.Tensor) -> torch.Tensor:
    """Each row at unit length."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def first_tokens(hidden: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The first row of each item."""
    return hidden.index_select(0, offsets[:-1].clamp(max=len(hidden) - 1))


def last_tokens(hidden: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The last row of each item."""
    return hidden.index_select(0, (offsets[1:] - 1).clamp(min=0))


def owners(offsets: torch.Tensor, tokens: int) -> torch.Tensor:
    """int64 `[tokens]`: the item that each token belongs to; tokens behind the last item belong to it."""
    places = torch.arange(tokens, device=offsets.device)
    return torch.searchsorted(offsets[1:-1].long(), places, right=True)


def _pool(hidden: torch.Tensor, offsets: torch.Tensor, pooling: str) -> torch.Tensor:
    if pooling == "cls":
        return first_tokens(hidden, offsets).float()
    if pooling == "lasttoken":
        return last_tokens(hidden, offsets).float()
    if pooling == "max":
        return _reduce(hidden, offsets, "max")
    count = offsets.diff()[:, None].clamp(min=1).float()
    if pooling == "weightedmean":
        places = torch.arange(1, len(hidden) + 1, device=hidden.device)
        weights = places - offsets.long()[owners(offsets, len(hidden))]
        return _reduce(hidden.float() * weights[:, None], offsets, "sum") * 2 / (count * (count + 1))
    mean = _reduce(hidden, offsets, "mean")
    return mean if pooling == "mean" else mean * count.sqrt()


def _pool_kept(
    hidden: torch.Tensor, offsets: torch.Tensor, pooling: str, kept: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """kept: bool `[tokens, 1]`. places: of each token in its item, from 0."""
    count = _reduce(kept, offsets, "sum")
    if pooling == "cls":
        dropped = torch.where(count[:, 0] > 0, offsets.diff() - count[:, 0], 0)
        return hidden.index_select(0, offsets[:-1] + dropped.to(offsets.dtype)).float()
    if pooling == "lasttoken":
        return last_tokens(hidden, offsets).float() * (count > 0)
    if pooling == "max":
        return _reduce(hidden.masked_fill(~kept, -torch.inf), offsets, "max")
    weights = kept * (places + 1)[:, None] if pooling == "weightedmean" else kept
    total = _reduce(weights, offsets, "sum").clamp(min=1)
    summed = _reduce(hidden.float() * weights, offsets, "sum")
    return summed / (total.sqrt() if pooling == "mean_sqrt_len_tokens" else total)


def _reduce(hidden: torch.Tensor, offsets: torch.Tensor, how: str) -> torch.Tensor:
    initial = None if how == "max" else 0
    # unsafe skips a check of the offsets that would wait for the device.
    return torch.segment_reduce(
        hidden.float(), how, offsets=offsets.long(), axis=0, unsafe=True, initial=initial
    )
