"""The whole forward as CUDA graphs, two per token bucket: a batch is written to pinned memory and one graph replayed."""

from __future__ import annotations

import gc
import time
import warnings
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_server.models import device_errors
from gpu_server.models.landed import Landed

Bounds = tuple[torch.Tensor, torch.Tensor]


class Inputs(NamedTuple):
    """What a captured forward reads: ids, positions and, where the model has them, token types, int64 `[tokens]`; each
    token's first and last key, int32 `[tokens]`; and where each sequence begins, int32 `[items + 1]`."""

    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor | None
    bounds: Bounds
    offsets: torch.Tensor


class Given(NamedTuple):
    """A batch as the host writes it: ids and perhaps token types `[tokens]`, offsets `[items + 1]`. int32, pinned."""

    ids: torch.Tensor
    types: torch.Tensor | None
    offsets: torch.Tensor


class Outputs(NamedTuple):
    """What a forward leaves: hidden states `[tokens, hidden_size]`, and its head's outputs of one row an item.

    landed: one of the head's outputs as float32, on its way to the host, where the graph brings it there.
    """

    hidden: torch.Tensor
    pooled: Sequence[torch.Tensor]
    landed: Landed | None = None

    def of(self, tokens: slice, items: slice) -> Outputs:
        """Those of some tokens and items, as views; none has landed."""
        return Outputs(self.hidden[tokens], [rows[items] for rows in self.pooled])


class Landing(NamedTuple):
    """Which of the head's outputs a graph leaves in pinned memory as well, and the length of its rows."""

    output: int
    size: int


Forward = Callable[[Inputs], Outputs]

SMALLEST = 16
LANDING_TOKENS = 2048
"""The largest bucket whose outputs land: a copy of their own is small then beside a forward, and so is the memory."""
TURNS = 2
"""Graphs a bucket, taken in turn: one is filled while the other runs."""
_KERNELS = 0.5
"""The part of capturing that loading kernels takes, or less."""


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


class Captured(NamedTuple):
    """What capturing took: graphs, seconds, and bytes of device memory beyond the weights.

    kernels: seconds before it in which kernels were loaded or, on a first start, built and layers compiled.
    """

    graphs: int
    seconds: float
    kernels: float
    memory: int


class Staged(NamedTuple):
    """A batch that lies in a bucket's pinned memory."""

    bucket: Bucket
    tokens: int
    items: int


class Bucket:
    """One captured forward of exactly `tokens` tokens and at most `items` sequences, and the pinned memory that it reads.

    The graph makes `Inputs` of what is `Given`, which it reads where the host wrote it.
    """

    def __init__(
        self,
        tokens: int,
        items: int,
        device: torch.device,
        first_position: int,
        token_types: bool,
        landing: Landing | None,
    ) -> None:
        self.tokens = tokens
        self.items = items
        self.outputs: Outputs | None = None
        self._first_position = first_position
        columns = 2 if token_types else 1
        pinned = device.type == "cuda"
        host = torch.zeros(columns * tokens + items + 1, dtype=torch.int32, pin_memory=pinned)
        self._given = Given(
            host[:tokens], host[tokens : 2 * tokens] if token_types else None, host[columns * tokens :]
        )
        self._ids, self._offsets = self._given.ids.numpy(), self._given.offsets.numpy()
        self._types = None if self._given.types is None else self._given.types.numpy()
        ids, positions, types = torch.zeros(3, tokens, dtype=torch.int64, device=device)
        lo, hi = torch.zeros(2, tokens, dtype=torch.int32, device=device)
        offsets = torch.zeros(items + 1, dtype=torch.int32, device=device)
        self.inputs = Inputs(ids, positions, types if token_types else None, (lo, hi), offsets)
        self._output, size = landing or (0, 0)
        lands = landing is not None and tokens <= LANDING_TOKENS
        self._landing = torch.zeros(items, size, pin_memory=pinned) if lands else None
        self._memory = None if self._landing is None else self._landing.numpy()
        self._landed: weakref.ref[Landed] | None = None
        self._graph = torch.cuda.CUDAGraph()
        self._done: torch.cuda.Event | None = None

    def fill(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], types: NDArray[np.int32] | None = None
    ) -> None:
        """Write a batch where the graph reads it, once the replay before has ended and what it left is safe."""
        if self._done is not None:
            self._done.synchronize()
        if self._landed is not None:
            landed = self._landed()
            if landed is not None:
                landed.take()
        tokens, items = len(ids), len(lengths)
        self._ids[:tokens] = ids
        if self._types is not None:
            self._types[:tokens] = 0 if types is None else types
        self._offsets[1 : items + 1] = np.add.accumulate(lengths)
        self._offsets[items + 1 :] = tokens

    def capture(self, forward: Forward, pool: Any) -> None:
        """Record `forward`, which has run, on the current stream."""
        torch.cuda.synchronize()
        # torch.cuda.graph would give memory back to the driver each time, which takes longer than the rest.
        self._graph.capture_begin(pool=pool)
        try:
            self.outputs = self.run(forward)
        finally:
            self._graph.capture_end()
        self._done = torch.cuda.Event()

    def replay(self) -> Outputs:
        """Run the recorded forward on what was filled in."""
        assert self.outputs is not None
        assert self._done is not None
        self._graph.replay()
        self._done.record()
        return self.outputs

    def run(self, forward: Forward) -> Outputs:
        """Run `forward` directly on what was filled in."""
        from gpu_server.models.text.spread_kernel import spread

        spread(self._given, self.inputs, self._first_position)
        outputs = forward(self.inputs)
        if self._landing is not None:
            from gpu_server.models.text.landing_kernel import land

            land(outputs.pooled[self._output], self.inputs.offsets, self._landing)
        return outputs

    def landed(self, items: int) -> Landed | None:
        """What the last replay leaves of the first `items` in pinned memory, if it lands there."""
        if self._memory is None:
            return None
        landed = Landed(self._memory[:items])
        self._landed = weakref.ref(landed)
        return landed


class Graphs:
    """All buckets of one model.

    max_tokens, max_items: the largest batch that is replayed; larger ones must run another way (`fits` tells).
    max_length: tokens of the longest sequence. first_position: what positions count from. token_types: whether batches
    bring them. landing: what small batches leave in pinned memory.
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
        token_types: bool = False,
        landing: Landing | None = None,
    ) -> None:
        self._forward = forward
        self._max_length = max_length
        self._sizes = ladder(max_tokens)
        self._max_items = max_items
        self._buckets = [
            [Bucket(n, min(n, max_items), device, first_position, token_types, landing) for _ in range(TURNS)]
            for n in self._sizes
        ]

    def capture(self, progress: Callable[[float], None], since: float) -> Captured:
        """Capture every bucket, the largest first so that the others share its memory; `progress` gets the part done.

        since: by `time.perf_counter`, when the first kernel was built or loaded.
        """
        free = _free_memory()
        pool = torch.cuda.graph_pool_handle()
        self.run_each(lambda done: progress(done * _KERNELS))
        with _capturing_stream():
            begun = time.perf_counter()
            buckets = [bucket for turns in reversed(self._buckets) for bucket in turns]
            for done, bucket in enumerate(buckets):
                progress(_KERNELS + (1 - _KERNELS) * done / len(buckets))
                bucket.capture(self._forward, pool)
            ended = time.perf_counter()
        return Captured(len(buckets), ended - begun, begun - since, free - _free_memory())

    def run_each(self, progress: Callable[[float], None]) -> None:
        """Run the forward once as each bucket will capture it, to compile what it compiles; `progress` as in `capture`."""
        for done, turns in enumerate(reversed(self._buckets)):
            progress(done / len(self._buckets))
            bucket = turns[0]
            lengths = filler(bucket.tokens, bucket.items, self._max_length)
            bucket.fill(np.zeros(lengths.sum(), np.int32), lengths)
            bucket.run(self._forward)

    def rehearse(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], types: NDArray[np.int32] | None = None
    ) -> Outputs:
        """Outputs of the forward as it will be captured, run directly."""
        staged = self.stage(ids, lengths, types)
        return staged.bucket.run(self._forward).of(slice(staged.tokens), slice(staged.items))

    def obstacle(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], types: NDArray[np.int32] | None = None
    ) -> str:
        """What keeps a forward, once rehearsed, out of a graph: that it waits for the device; "" if nothing is found."""
        try:
            with _as_if_capturing():
                self.rehearse(ids, lengths, types)
        except RuntimeError as error:
            device_errors.pass_on(error)
            return str(error).partition("\n")[0]
        return ""

    def replay_each(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], types: NDArray[np.int32] | None = None
    ) -> Iterator[Outputs]:
        """Each graph's outputs for the leading sequences that it holds, put behind others that fill it.

        They are views that its next replay overwrites.
        """
        for bucket in (bucket for turns in self._buckets for bucket in turns):
            last_ids, last = leading(ids, lengths, bucket.tokens, bucket.items)
            first = filler(bucket.tokens - len(last_ids), bucket.items - len(last), self._max_length)
            before = np.zeros(first.sum(), np.int32)
            bucket.fill(
                np.concatenate([before, last_ids]),
                np.concatenate([first, last]),
                None if types is None else np.concatenate([before, types[: len(last_ids)]]),
            )
            yield bucket.replay().of(
                slice(len(before), len(before) + len(last_ids)), slice(len(first), len(first) + len(last))
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each bucket, ascending."""
        return tuple(self._sizes)

    def fits(self, tokens: int, items: int) -> bool:
        """Whether some bucket can hold such a batch."""
        return tokens <= self._sizes[-1] and items <= self._max_items

    def stage(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], types: NDArray[np.int32] | None = None
    ) -> Staged:
        """Write a batch that `fits` into the smallest bucket that holds it, which waits where both its turns still run.

        types: token types `[tokens]`; None means 0 for all. Left out where the graphs were made without them.
        """
        tokens, items = len(ids), len(lengths)
        # A text has a token at least, so a bucket of as many tokens as there are items holds them, up to `max_items`.
        turns = self._buckets[bisect_left(self._sizes, max(tokens, items))]
        bucket = turns.pop(0)
        turns.append(bucket)
        bucket.fill(ids, lengths, types)
        return Staged(bucket, tokens, items)

    def replay(self, staged: Staged) -> Outputs:
        """Outputs of a staged batch: views that another replay overwrites, in stream order."""
        outputs = staged.bucket.replay().of(slice(staged.tokens), slice(staged.items))
        return outputs._replace(landed=staged.bucket.landed(staged.items))


@contextmanager
def _capturing_stream() -> Iterator[None]:
    """One stream for all captures of a model: what was captured on several would share no memory.

    It is the current one where that is not the default one, on which CUDA does not capture. No garbage is collected
    meanwhile: to free a graph, another model's, is not permitted then and breaks the capture. Nor may one be freed while
    those captured on the same stream still serve: torch may free the workspace that they share with it.
    """
    current = torch.cuda.current_stream()
    stream = torch.cuda.Stream() if current == torch.cuda.default_stream() else current
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            # Gives the stream its workspace, which would else be part of the first graph's memory.
            torch.cuda.current_blas_handle()
            yield
        torch.cuda.synchronize()
    finally:
        if collects:
            gc.enable()


@contextmanager
def _as_if_capturing() -> Iterator[None]:
    """Operations that wait for the device raise RuntimeError, as far as torch knows them; who asks is told of a capture.

    Models of Transformers that wait only to warn of something ask, and do not while one is going on.
    """
    asked, mode = torch.cuda.is_current_stream_capturing, torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # It warns that it does not know them all.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
        torch.cuda.is_current_stream_capturing = lambda: True
        try:
            yield
        finally:
            torch.cuda.is_current_stream_capturing = asked
            torch.cuda.set_sync_debug_mode(mode)


def _free_memory() -> int:
    """Bytes that the device has left when torch has given back what it does not use."""
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])
