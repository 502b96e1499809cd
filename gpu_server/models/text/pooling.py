"""From token vectors to one vector an item, and to unit length."""

from __future__ import annotations

import torch

from gpu_server.models.text.checkpoint import Pooling
from gpu_server.models.text.triton_support import has_triton


def pool(hidden: torch.Tensor, offsets: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Pool flat hidden states `[tokens, dim]` of any dtype to float32 `[items, dim]`.

    offsets: `[items + 1]`, where each item begins; an item without tokens (padding of a graph) gets any finite row.
    """
    if pooling == "cls":
        return hidden.index_select(0, offsets[:-1].clamp(max=len(hidden) - 1)).float()
    if pooling == "lasttoken":
        return hidden.index_select(0, (offsets[1:] - 1).clamp(min=0)).float()
    # unsafe skips a check of the offsets that would wait for the device.
    return torch.segment_reduce(
        hidden.float(), "mean", offsets=offsets.long(), axis=0, unsafe=True, initial=0
    )


def pool_and_normalize(
    hidden: torch.Tensor, offsets: torch.Tensor, pooling: Pooling
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pool`, and the same rows at unit length; both float32 `[items, dim]`."""
    if hidden.is_cuda and has_triton():
        from gpu_server.models.text import pooling_kernel

        return pooling_kernel.pool_and_normalize(hidden.contiguous(), offsets, pooling)
    vectors = pool(hidden, offsets, pooling)
    return vectors, normalized(vectors)


def normalized(vectors: torch.Tensor) -> torch.Tensor:
    """Each row at unit length."""
    return torch.nn.functional.normalize(vectors, dim=-1)
