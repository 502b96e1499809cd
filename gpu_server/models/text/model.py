"""What all text models share: finding and loading a checkpoint, checking token ids, running them, saying what they are."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_server.errors import ConfigError, InvalidRequest
from gpu_server.models.base import Model, Ragged
from gpu_server.models.text import checkpoint, encoder, onednn, selfcheck, source, steady, token_types
from gpu_server.models.text.batch import Batch
from gpu_server.models.text.encoder import Encoder
from gpu_server.models.text.forward import Forward
from gpu_server.models.text.graphs import Captured, Staged
from gpu_server.models.text.pooling import pool
from gpu_server.source import whole_name
from gpu_server.wire.documents import ModelInfo, TextInfo
from gpu_server.wire.tensor import Tensor

log = logging.getLogger(__name__)

_FULL_BATCH_TOKENS = ModelInfo(name="").max_batch_tokens
_FULL_BATCH_ITEMS = ModelInfo(name="").max_batch_items
# A CPU has no kernels to load for each new shape.
_CPU_WARM_UP_TOKENS = 64
_IDS = "input_ids"
_TYPES = "token_type_ids"

Inputs = Mapping[str, tuple[str, tuple[int, ...]]]
TEXTS: Inputs = MappingProxyType({_IDS: ("i32", (-1,))})
PAIRS: Inputs = MappingProxyType({_IDS: ("i32", (-1,)), _TYPES: ("i32", (-1,))})
"""What a model takes whose items may be pairs of texts, which it tells apart by the types of their tokens."""


class TextBatch(NamedTuple):
    """A checked batch: where it lies to be run, and its ids and lengths on the host."""

    packed: Batch | Staged
    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]

    def ragged(self, rows: torch.Tensor) -> Ragged:
        """An output with one row a token."""
        return Ragged(rows, self.lengths)


class TextModel(Model):
    """A Hugging Face encoder with something made of its hidden states, which a subclass defines.

    source: a folder or a hub id; "" means all-MiniLM-L6-v2. revision: of a hub id. dtype: auto, float32, float16 or
    bfloat16. pooling: of embeddings, one of `checkpoint.POOLINGS` ("+" joins several); "" means as the model's files say.
    max_length: tokens of the longest item; 0 means as they say. packed: run without padding where that is right. graphs,
    fused, compiled: on a GPU, run as CUDA graphs, of hand-fused layers where the family has them and they are accurate
    enough, else of compiled ones or of the model's own.
    """

    poolings: Sequence[str] = checkpoint.POOLINGS
    inputs: Inputs = TEXTS
    cost = _IDS
    check_finite = True
    may_round = False
    """Whether dtype auto may multiply in bfloat16 on a CPU, where that leaves pooled vectors nearly as they are."""

    def __init__(
        self,
        source: str = "",
        *,
        revision: str = "",
        dtype: str = "auto",
        pooling: str = "",
        max_length: int = 0,
        packed: bool = True,
        graphs: bool = True,
        compiled: bool = True,
        fused: bool = True,
    ) -> None:
        for name in pooling.split("+") if pooling else ():
            if name not in self.poolings:
                raise ConfigError(f"pooling {name} must be one of {', '.join(self.poolings)}")
        self._source = source
        self._revision = revision
        self._dtype = dtype
        self._wanted_pooling = pooling
        self._wanted_length = max_length
        self._wants_packed = packed
        self._wants_graphs = graphs
        self._wants_compiled = compiled
        self._wants_fused = fused

    def load(self, device: torch.device) -> None:
        """Find, read, load and check the model. Raises ConfigError or EngineStartFailed."""
        folder = source.find(self._source, self._revision)
        self._facts = checkpoint.read(folder, self._wanted_pooling)
        dtypes = encoder.dtypes(self._dtype, self._facts.stored_dtype, device)
        for dtype in dtypes[:-1]:
            try:
                self._load_as(dtype, device)
                break
            except selfcheck.WrongDtype as error:
                log.warning("another dtype is tried", extra={"reason": str(error)})
            self._forget_weights()
        else:
            self._load_as(dtypes[-1], device)
        self.padded = self._encoder.runs == "padded"
        self._forward = Forward(
            self._encoder,
            self._head,
            token_types=self.inputs is PAIRS or self._types is not None,
            lands=self._lands(),
        )

    def collate(self, inputs: Mapping[str, Tensor], device: torch.device) -> TextBatch:
        """Check ids, types and lengths, and move them to the device. Raises InvalidRequest naming the first wrong item.

        An id outside its table would be a device-side assertion, which ends the engine process.
        """
        offsets, ids = _ragged(_IDS, inputs[_IDS])
        lengths = offsets[1:] - offsets[:-1]
        self._check_lengths(lengths)
        _check_range(ids, offsets, self._encoder.vocab_size, "a token id", "vocab_size")
        types = None if self._types is None else self._types.of(lengths)
        if self.inputs is PAIRS:
            their_offsets, types = _ragged(_TYPES, inputs[_TYPES])
            if not np.array_equal(offsets, their_offsets):
                item = int((np.diff(their_offsets) != lengths).argmax())
                raise InvalidRequest(f"input {item} has not one token type a token", {"item": item})
            _check_range(types, offsets, self._encoder.token_types, "a token type", "type_vocab_size")
        return TextBatch(self._forward.pack(ids, lengths, types), ids, lengths)

    def warm_up(self, run: Any) -> None:
        """Capture the graphs where there are any; then run one token, and ever larger batches up to a full one."""
        if self._wants_graphs and self._forward.can_capture():
            self._forward.capture(
                max_tokens=self.max_batch_tokens or _FULL_BATCH_TOKENS,
                max_items=self.max_batch_items or _FULL_BATCH_ITEMS,
                max_length=self._max_length,
                compiled=self._wants_compiled,
                fused=self._wants_fused,
                progress=self.progress,
            )
        on_cpu = self._encoder.device.type == "cpu"
        full = _CPU_WARM_UP_TOKENS if on_cpu else self.max_batch_tokens or _FULL_BATCH_TOKENS
        tokens = 1
        while tokens <= full:
            length = min(tokens, 32, self._max_length)
            rows = [np.zeros(length, np.int32)] * (tokens // length)
            run({name: Tensor.from_rows(rows, "i32") for name in self.inputs})
            tokens *= 4

    def describe(self, info: ModelInfo) -> None:
        """State what clients need: the tokenizer's digest, lengths, prompts and how the model runs."""
        info.source = whole_name(self._source)
        info.dtype = str(self._encoder.dtype).removeprefix("torch.")
        info.text = self._text_info()
        rounded = ", bfloat16 products" if self._products == "bfloat16" else ""
        info.runs = self._forward.runs + rounded
        info.graphs = self._forward.graph_sizes

    @property
    def encoder_model(self) -> Any:
        """The Transformers model."""
        return self._encoder.model

    @property
    def captured(self) -> Captured | None:
        """What capturing the graphs took, where there are any."""
        return self._forward.captured

    def tokenizer_json(self) -> bytes:
        """The tokenizer.json that makes this model's token ids."""
        return self._facts.tokenizer_json

    def _text_info(self) -> TextInfo:
        facts = self._facts
        return TextInfo(
            digest=hashlib.sha256(facts.tokenizer_json).hexdigest(),
            max_length=self._max_length,
            vocab_size=self._encoder.vocab_size,
            prompts=facts.prompts,
            default_prompt=facts.default_prompt,
            truncation_direction=facts.truncation_direction,
            hidden_size=self._encoder.hidden_size,
        )

    def _load_as(self, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights in one number type, and settle how they run. Raises WrongDtype where they do not."""
        facts = self._facts
        self._encoder = self._load_encoder(device, dtype)
        self._types = None
        if self.inputs is not PAIRS:
            self._types = token_types.of_texts(facts.folder, facts.tokenizer_json, self._encoder)
        self._max_length = self._limit_length()
        steady.settle(self._encoder.model, self._max_length, facts.folder)
        selfcheck.choose(self._encoder, self._max_length, packed=self._wants_packed)
        probe = selfcheck.probe(self._encoder, self._max_length, onednn.TIMES)
        may_round = self.may_round and self._dtype == "auto"
        self._products = onednn.adopt(self._encoder, probe, rounded=facts.pooling if may_round else "")
        self._settle()

    def _forget_weights(self) -> None:
        """Make room for those of another number type."""
        del self._encoder

    def _load_encoder(self, device: torch.device, dtype: torch.dtype) -> Encoder:
        """Load the weights."""
        return encoder.load(self._facts.folder, device, dtype)

    def _settle(self) -> None:
        """Finish what needs an encoder that is known to run."""

    def _head(self, hidden: torch.Tensor, offsets: torch.Tensor) -> Sequence[torch.Tensor]:
        """What graphs hold besides the encoder: outputs of one row an item. Graphs are verified by it: never none."""
        return [pool(hidden, offsets, "mean")]

    def _lands(self) -> int | None:
        """Which output of `_head` most batches are asked for, if it leaves as it is, `[items, size]`."""
        return None

    def _limit_length(self) -> int:
        facts = self._facts
        positions = self._encoder.positions or max(facts.positions - self._encoder.first_position, 0)
        if positions and self._wanted_length > positions:
            raise ConfigError(f"max_length {self._wanted_length} exceeds the model's {positions} positions")
        length = self._wanted_length or facts.max_length
        return min(length, positions) if positions else length

    def _check_lengths(self, lengths: NDArray[np.int64]) -> None:
        # Taken without its sign, what is less than 0 is the largest: one comparison for both limits.
        if (lengths - 1).view(np.uint64).max() < self._max_length:
            return
        item = int(((lengths < 1) | (lengths > self._max_length)).argmax())
        raise InvalidRequest(
            f"input {item} has {lengths[item]} tokens, and must have 1 to max_length = {self._max_length}",
            {"item": item, "limit": "max_length"},
        )


def _ragged(name: str, tensor: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    if tensor.signature != ("i32", (-1,)):
        raise InvalidRequest(f"{name} must be ragged i32", {"field": name})
    return np.asarray(tensor.offsets, dtype=np.int64), np.frombuffer(tensor.data, "<i4")


def _check_range(
    values: NDArray[np.int32], offsets: NDArray[np.int64], size: int, what: str, limit: str
) -> None:
    unsigned = values.view(np.uint32)
    if unsigned.max() < size:
        return
    item = int(offsets.searchsorted((unsigned >= size).argmax(), "right")) - 1
    raise InvalidRequest(f"input {item} has {what} outside 0 … {size - 1}", {"item": item, "limit": limit})
