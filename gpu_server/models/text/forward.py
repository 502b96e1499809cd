"""How a batch of token ids becomes a model's outputs: by replaying a CUDA graph that holds it, else directly."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from subprocess import SubprocessError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_server.errors import DeviceLost, EngineStartFailed, OutOfMemory
from gpu_server.models import device_errors
from gpu_server.models.text import selfcheck
from gpu_server.models.text.attention import CannotPack
from gpu_server.models.text.batch import Batch, has_padding
from gpu_server.models.text.compiling import CompiledLayers, end_workers
from gpu_server.models.text.encoder import Encoder
from gpu_server.models.text.fused import FusedBert, suits
from gpu_server.models.text.graphs import Captured, Graphs, Inputs, Landing, Outputs, Staged, leading
from gpu_server.models.text.selfcheck import Probe, States
from gpu_server.models.text.triton_support import has_triton

log = logging.getLogger(__name__)

Head = Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]
"""Hidden states `[tokens, hidden_size]` and offsets `[items + 1]` to outputs with one row per item."""
Progress = Callable[[float], None]

FUSED_ERROR_LIMIT = 1.1
_COMPILING = 0.8
"""The part of a start with compiled layers that compiling them takes."""


class Forward:
    """An encoder and what is made of its hidden states; `runs` says how: padded, packed, or one of three kinds of graphs.

    lands: which of the head's outputs graphs bring to the host by themselves, if one. captured: what capturing the graphs
    took, where there are any.
    """

    def __init__(
        self, encoder: Encoder, head: Head, *, token_types: bool = False, lands: int | None = None
    ) -> None:
        self.encoder = encoder
        self.runs: str = encoder.runs
        self._head = head
        self._token_types = token_types
        self._lands = lands
        self._graphs: Graphs | None = None
        self._states: States = self._stock_states
        self._layers: CompiledLayers | None = None
        self.captured: Captured | None = None

    def pack(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], types: NDArray[np.int32] | None = None
    ) -> Batch | Staged:
        """Move sequences, laid end to end, to where they will run."""
        if self._graphs is not None and self._graphs.fits(len(ids), len(lengths)) and self._counts_all(ids):
            return self._graphs.stage(ids, lengths, types)
        return self.encoder.pack(ids, lengths, types)

    def __call__(self, batch: Batch | Staged) -> Outputs:
        """The hidden states, and the head's outputs."""
        if isinstance(batch, Staged):
            assert self._graphs is not None
            return self._graphs.replay(batch)
        hidden = self.encoder(batch)
        return Outputs(hidden, self._head(hidden, batch.layout.offsets))

    @property
    def graph_sizes(self) -> tuple[int, ...]:
        """Tokens of the graphs that batches run in, ascending; none where there are no graphs."""
        return () if self._graphs is None else self._graphs.sizes

    def can_capture(self) -> bool:
        """Whether this model and device can run as graphs: packed, in half precision, on CUDA with Triton."""
        half = self.encoder.dtype in (torch.float16, torch.bfloat16)
        return self.encoder.device.type == "cuda" and half and self.encoder.runs == "packed" and has_triton()

    def capture(
        self,
        *,
        max_tokens: int,
        max_items: int,
        max_length: int,
        compiled: bool,
        fused: bool,
        progress: Progress,
    ) -> None:
        """Capture a graph for every bucket. A model that token-tiled attention does not suit, or that waits for the device,
        stays as it is.

        Raises EngineStartFailed when a capture fails, which leaves the CUDA context useless, or gives other numbers;
        OutOfMemory, DeviceLost.
        """
        started, longest = time.perf_counter(), min(max_length, max_tokens)
        probe = leading(*selfcheck.probe(self.encoder, longest), max_tokens, max_items)
        wanted = [output.clone() for output in self(self.encoder.pack(*probe)).pooled]
        graphs = Graphs(
            self._captured,
            self.encoder.device,
            max_tokens=max_tokens,
            max_items=max_items,
            max_length=max_length,
            first_position=self.encoder.first_position,
            token_types=self._token_types,
            landing=None if self._lands is None else Landing(self._lands, wanted[self._lands].shape[1]),
        )
        if not self._rehearsal_agrees(graphs, probe, wanted):
            return
        runs = self._choose_layers(graphs, probe, compiled, fused, progress)
        self.captured = self._record(graphs, progress, started)
        for got in graphs.replay_each(*probe):
            same = [rows[: len(got.pooled[0])] for rows in wanted]
            if not selfcheck.outputs_agree(got.pooled, same, self.encoder.dtype):
                raise EngineStartFailed(f"the {runs} give other numbers; start with --no-graphs")
        self._graphs, self.runs = graphs, runs

    def _counts_all(self, ids: NDArray[np.int32]) -> bool:
        """Whether every token's position is that of its place, which is all that graphs know of."""
        return not has_padding(ids, self.encoder.first_position)

    def _record(self, graphs: Graphs, progress: Progress, since: float) -> Captured:
        begun = _COMPILING if self._layers else 0.0
        try:
            with self._layers or nullcontext():
                return graphs.capture(lambda done: progress(begun + (1 - begun) * done), since)
        except RuntimeError as error:
            raise _capture_failed(error) from error

    def _rehearsal_agrees(self, graphs: Graphs, probe: Probe, wanted: Sequence[torch.Tensor]) -> bool:
        try:
            got = graphs.rehearse(*probe)
        except CannotPack as error:
            log.info("runs without graphs", extra={"reason": str(error)})
            return False
        if not selfcheck.outputs_agree(got.pooled, wanted, self.encoder.dtype):
            log.warning("runs without graphs: token-tiled attention gives other numbers")
            return False
        obstacle = graphs.obstacle(*probe)
        if obstacle:
            log.info("runs without graphs", extra={"reason": f"no graph can hold the model: {obstacle}"})
        return not obstacle

    def _choose_layers(
        self, graphs: Graphs, probe: Probe, compiled: bool, fused: bool, progress: Progress
    ) -> str:
        """Settle which layers are captured; returns what `runs` will say."""
        if fused and suits(self.encoder.model) and self._fuse(probe):
            return "fused graphs"
        if compiled and self._compile(graphs, progress):
            return "compiled graphs"
        return "graphs"

    def _compile(self, graphs: Graphs, progress: Progress) -> bool:
        """Compile the layers for every bucket before any is captured, so that a failure costs only their speed."""
        layers = CompiledLayers(self.encoder.model)
        if not layers.found:
            return False
        try:
            with layers:
                graphs.run_each(lambda done: progress(_COMPILING * done))
        except (RuntimeError, OSError, SubprocessError, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            device_errors.pass_on(error)
            log.warning(
                "runs with the model's own layers: compiling them failed; --no-compile does not try",
                extra={"reason": _first_line(error)},
            )
            return False
        finally:
            end_workers()
        self._layers = layers
        return True

    def _fuse(self, probe: Probe) -> bool:
        """Use the hand-fused layers if they are as near to float32 as the model's own, on its own weights."""
        fused = FusedBert(self.encoder.model)
        own, theirs = selfcheck.errors_to_float32(self.encoder, probe, fused)
        if theirs > own * FUSED_ERROR_LIMIT:
            log.info("layers not fused: less accurate", extra={"fused_error": theirs, "own_error": own})
            return False
        self._states = fused
        return True

    def _captured(self, inputs: Inputs) -> Outputs:
        hidden = self._states(inputs)
        return Outputs(hidden, self._head(hidden, inputs.offsets))

    def _stock_states(self, inputs: Inputs) -> torch.Tensor:
        types = {} if inputs.types is None else {"token_type_ids": inputs.types[None]}
        out: Any = self.encoder.model(
            input_ids=inputs.ids[None],
            position_ids=inputs.positions[None],
            bounds=inputs.bounds,
            **types,
        )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden


def _capture_failed(error: RuntimeError) -> Exception:
    """What a failed capture is called: whether another start, of what kind, may do better."""
    if device_errors.is_out_of_memory(error):
        return OutOfMemory(
            "the device has not enough memory for the graphs: lower max_batch_tokens, or start with --no-graphs"
        )
    if device_errors.is_lost(error) and "captur" not in str(error):
        return DeviceLost(_first_line(error))
    return EngineStartFailed(f"capturing the forward failed: {_first_line(error)}; start with --no-graphs")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
