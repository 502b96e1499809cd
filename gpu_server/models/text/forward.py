"""How a batch of token ids becomes a model's outputs: by replaying a CUDA graph that holds it, else directly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_server.errors import EngineStartFailed
from gpu_server.models.text import selfcheck
from gpu_server.models.text.attention import CannotPack
from gpu_server.models.text.batch import Batch
from gpu_server.models.text.compiling import CompiledLayers
from gpu_server.models.text.encoder import Encoder
from gpu_server.models.text.fused import FusedBert, suits
from gpu_server.models.text.graphs import Captured, Graphs, Inputs, Outputs, Staged, leading
from gpu_server.models.text.selfcheck import Probe, States
from gpu_server.models.text.triton_support import has_triton

log = logging.getLogger(__name__)

Head = Callable[[torch.Tensor, torch.Tensor], Sequence[torch.Tensor]]
"""Hidden states `[tokens, hidden_size]` and offsets `[items + 1]` to outputs with one row per item."""
Progress = Callable[[float], None]

FUSED_ERROR_LIMIT = 1.1


class Forward:
    """An encoder and what is made of its hidden states; `runs` says how: padded, packed, or one of three kinds of graphs.

    captured: what capturing the graphs took, where there are any.
    """

    def __init__(self, encoder: Encoder, head: Head, *, token_types: bool = False) -> None:
        self.encoder = encoder
        self.runs: str = encoder.runs
        self._head = head
        self._token_types = token_types
        self._graphs: Graphs | None = None
        self._states: States = self._stock_states
        self._layers: CompiledLayers | None = None
        self.captured: Captured | None = None

    def pack(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], types: NDArray[np.int32] | None = None
    ) -> Batch | Staged:
        """Move sequences, laid end to end, to where they will run."""
        if self._graphs is not None and self._graphs.fits(len(ids), len(lengths)):
            return self._graphs.stage(ids, lengths, types)
        return self.encoder.pack(ids, lengths, types)

    def __call__(self, batch: Batch | Staged) -> Outputs:
        """The hidden states, and the head's outputs."""
        if isinstance(batch, Staged):
            assert self._graphs is not None
            return self._graphs.replay(batch)
        hidden = self.encoder(batch)
        return Outputs(hidden, self._head(hidden, batch.layout.offsets))

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
        """Capture a graph for every bucket. A model that token-tiled attention does not suit stays as it is.

        Raises EngineStartFailed when a capture fails, which leaves the CUDA context useless, or gives other numbers.
        """
        graphs = Graphs(
            self._captured,
            self.encoder.device,
            max_tokens=max_tokens,
            max_items=max_items,
            max_length=max_length,
            first_position=self.encoder.first_position,
            token_types=self._token_types,
        )
        longest = min(max_length, max_tokens)
        probe = leading(*selfcheck.probe(self.encoder, longest), max_tokens, max_items)
        wanted = [output.clone() for output in self(self.encoder.pack(*probe)).pooled]
        if not self._rehearsal_agrees(graphs, probe, wanted):
            return
        runs = self._choose_layers(probe, compiled, fused)
        try:
            with self._layers or nullcontext():
                self.captured = graphs.capture(progress)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise EngineStartFailed(
                f"capturing the forward failed: {reason}; start with --no-graphs"
            ) from error
        for got in graphs.replay_each(*probe):
            same = [rows[: len(got.pooled[0])] for rows in wanted]
            if not selfcheck.outputs_agree(got.pooled, same, self.encoder.dtype):
                raise EngineStartFailed(f"the {runs} give other numbers; start with --no-graphs")
        self._graphs, self.runs = graphs, runs

    def _rehearsal_agrees(self, graphs: Graphs, probe: Probe, wanted: Sequence[torch.Tensor]) -> bool:
        try:
            got = graphs.rehearse(*probe)
        except CannotPack as error:
            log.info("runs without graphs", extra={"reason": str(error)})
            return False
        agree = selfcheck.outputs_agree(got.pooled, wanted, self.encoder.dtype)
        if not agree:
            log.warning("runs without graphs: token-tiled attention gives other numbers")
        return agree

    def _choose_layers(self, probe: Probe, compiled: bool, fused: bool) -> str:
        """Settle which layers are captured; returns what `runs` will say."""
        if fused and suits(self.encoder.model) and self._fuse(probe):
            return "fused graphs"
        if compiled:
            layers = CompiledLayers(self.encoder.model)
            if layers.found:
                self._layers = layers
                return "compiled graphs"
        return "graphs"

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
        types = {} if inputs.types is None else {"token_type_ids": inputs.types[None].long()}
        out: Any = self.encoder.model(
            input_ids=inputs.ids[None].long(),
            position_ids=inputs.positions[None].long(),
            bounds=inputs.bounds,
            **types,
        )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden
