"""The whole forward as CUDA graphs, one per token bucket: a batch is one copy in, one replay and one copy out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_server.models.text.batch import token_positions

Bounds = tuple[torch.Tensor, torch.Tensor]
Forward = Callable[[torch.Tensor, torch.Tensor, Bounds, torch.Tensor], Sequence[torch.Tensor]]
"""ids, positions int64 `[tokens]`, two key bounds int32 `[tokens]`, offsets int32 `[items + 1]`, to outputs `[items, …]`."""

SMALLEST = 16
WARM_UPS = 3


def ladder(max_tokens: int) -> list[int]:
    """Bucket sizes up to `max_tokens`: powers of two, and from 256 on one between each two, so that little is padding."""
    sizes, size = [], SMALLEST
    while size < max_tokens:
        sizes.append(size)
        if size >= 256 and size * 3 // 2 < max_tokens:
            sizes.append(size * 3 // 2)
        size *= 2
    return [*sizes, max_tokens]


def filler(tokens: int, items: int, max_length: int) -> NDArray[np.int64]:
    """Lengths of the longest sequences, at most `items` of them, that fill `tokens` tokens or as much as they can."""
    whole, rest = divmod(min(tokens, items * max_length), max_length)
    return np.array([max_length] * whole + [rest] * (rest > 0), np.int64)


def leading(
    ids: NDArray[np.int32], lengths: NDArray[np.int64], tokens: int, items: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """As many of the first sequences as `tokens` and `items` hold."""
    count = min(int(np.searchsorted(np.cumsum(lengths), tokens, "right")), items)
    return ids[: int(lengths[:count].sum())], lengths[:count]


@dataclass(frozen=True)
class Staged:
    """A batch that lies in its bucket's input."""

    bucket: Bucket
    items: int


class Bucket:
    """One captured forward of exactly `tokens` tokens and at most `items` sequences."""

    def __init__(self, tokens: int, items: int, device: torch.device) -> None:
        self.tokens = tokens
        self.items = items
        # ids, positions, lo, hi and offsets in one buffer, so that one copy brings them.
        self.input = torch.zeros(4 * tokens + items + 1, dtype=torch.int32, device=device)
        self.outputs: Sequence[torch.Tensor] = ()
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, forward: Forward, pool: Any) -> None:
        """Run `forward` until everything it needs is loaded and compiled, then record it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.run(forward)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph, pool=pool):
            self.outputs = self.run(forward)

    def replay(self) -> None:
        """Run the recorded forward on what lies in `input`."""
        self._graph.replay()

    def run(self, forward: Forward) -> Sequence[torch.Tensor]:
        """Run `forward` directly on what lies in `input`."""
        n = self.tokens
        wide = self.input[: 2 * n].long()
        return forward(
            wide[:n], wide[n:], (self.input[2 * n : 3 * n], self.input[3 * n : 4 * n]), self.input[4 * n :]
        )


class Graphs:
    """All buckets of one model.

    max_tokens, max_items: the largest batch that is replayed; larger ones must run another way (`fits` tells).
    max_length: tokens of the longest sequence. first_position: what positions count from.
    """

    def __init__(
        self,
        forward: Forward,
        device: torch.device,
        *,
        max_tokens: int,
        max_items: int,
        max_length: int,
        first_position: int,
    ) -> None:
        self._forward = forward
        self._max_length = max_length
        self._device = device
        self._first_position = first_position
        self._buckets = [Bucket(n, min(n, max_items), device) for n in ladder(max_tokens)]

    def capture(self, progress: Callable[[float], None]) -> None:
        """Capture every bucket, the largest first so that the others share its memory; `progress` gets the part done."""
        pool = torch.cuda.graph_pool_handle()
        for done, bucket in enumerate(reversed(self._buckets)):
            progress(done / len(self._buckets))
            lengths = filler(bucket.tokens, bucket.items, self._max_length)
            self._fill(bucket, np.zeros(lengths.sum(), np.int32), lengths)
            bucket.capture(self._forward, pool)

    def rehearse(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> list[torch.Tensor]:
        """Outputs of the forward as it will be captured, run directly."""
        staged = self.stage(ids, lengths)
        return [output[: staged.items] for output in staged.bucket.run(self._forward)]

    def replay_each(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> Iterator[list[torch.Tensor]]:
        """Each bucket's outputs for the leading sequences that it holds, put behind others that fill it.

        They are views that the next replay overwrites.
        """
        for bucket in self._buckets:
            last_ids, last = leading(ids, lengths, bucket.tokens, bucket.items)
            first = filler(bucket.tokens - len(last_ids), bucket.items - len(last), self._max_length)
            all_ids = np.concatenate([np.zeros(first.sum(), np.int32), last_ids])
            self._fill(bucket, all_ids, np.concatenate([first, last]))
            bucket.replay()
            yield [output[len(first) : len(first) + len(last)] for output in bucket.outputs]

    def fits(self, tokens: int, items: int) -> bool:
        """Whether some bucket can hold such a batch."""
        return self._smallest(tokens, items) is not None

    def stage(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> Staged:
        """Copy a batch into the smallest bucket that holds it; the stream orders the copy behind earlier replays."""
        bucket = self._smallest(len(ids), len(lengths))
        assert bucket is not None
        self._fill(bucket, ids, lengths)
        return Staged(bucket, len(lengths))

    def replay(self, staged: Staged) -> list[torch.Tensor]:
        """Outputs of a staged batch: views that the next replay overwrites, in stream order."""
        staged.bucket.replay()
        return [output[: staged.items] for output in staged.bucket.outputs]

    def _smallest(self, tokens: int, items: int) -> Bucket | None:
        return next((b for b in self._buckets if tokens <= b.tokens and items <= b.items), None)

    def _fill(self, bucket: Bucket, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        n, tokens, items = bucket.tokens, len(ids), len(lengths)
        host = torch.empty(bucket.input.shape, dtype=torch.int32, pin_memory=bucket.input.is_cuda)
        view = host.numpy()
        ends = np.cumsum(lengths)
        starts = ends - lengths
        sections = view[: 4 * n].reshape(4, n)
        sections[0, :tokens] = ids
        sections[1, :tokens] = token_positions(lengths) + self._first_position
        sections[2, :tokens] = np.repeat(starts, lengths)
        sections[3, :tokens] = np.repeat(ends, lengths)
        # Padding is a token 0 that sees nothing: its keys run from the end of the batch to 0.
        sections[:, tokens:] = np.array([[0], [self._first_position], [tokens], [0]])
        offsets = view[4 * n :]
        offsets[0] = 0
        offsets[1 : items + 1] = ends
        offsets[items + 1 :] = tokens
        bucket.input.copy_(host, non_blocking=True)
