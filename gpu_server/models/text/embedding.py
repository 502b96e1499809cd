"""The built-in model: token ids in, one embedding an item out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_server.errors import ConfigError, InvalidRequest
from gpu_server.models.base import Model
from gpu_server.models.text import checkpoint, encoder, selfcheck, source
from gpu_server.models.text.batch import Batch
from gpu_server.models.text.forward import Forward
from gpu_server.models.text.graphs import Staged
from gpu_server.models.text.pooling import normalized, pool_and_normalize
from gpu_server.wire.documents import ModelInfo, TextInfo
from gpu_server.wire.tensor import Tensor

_FULL_BATCH_TOKENS = ModelInfo(name="").max_batch_tokens
_FULL_BATCH_ITEMS = ModelInfo(name="").max_batch_items
# A CPU has no kernels to load for each new shape.
_CPU_WARM_UP_TOKENS = 64


class EmbeddingModel(Model):
    """Sentence embeddings of any Hugging Face encoder.

    source: a folder or a hub id; "" means all-MiniLM-L6-v2. revision: of a hub id. dtype: auto, float32, float16 or
    bfloat16. pooling: cls, mean or lasttoken; "" means as the model's files say. max_length: tokens of the longest item;
    0 means as they say. graphs, fused, compiled: on a GPU, run as CUDA graphs, of hand-fused layers where the family has
    them and they are accurate enough, else of compiled ones or of the model's own.
    """

    inputs: ClassVar[Mapping[str, tuple[str, tuple[int, ...]]]] = {"input_ids": ("i32", (-1,))}
    cost = "input_ids"
    check_finite = True
    params: ClassVar[Mapping[str, Any]] = {"normalize": None, "dimensions": 0}

    def __init__(
        self,
        source: str = "",
        *,
        revision: str = "",
        dtype: str = "auto",
        pooling: str = "",
        max_length: int = 0,
        graphs: bool = True,
        compiled: bool = False,
        fused: bool = True,
    ) -> None:
        if pooling and pooling not in checkpoint.POOLINGS:
            raise ConfigError(f"pooling {pooling} must be one of {', '.join(checkpoint.POOLINGS)}")
        self._source = source
        self._revision = revision
        self._dtype = dtype
        self._wanted_pooling = cast(checkpoint.Pooling, pooling) if pooling else None
        self._wanted_length = max_length
        self._wants_graphs = graphs
        self._wants_compiled = compiled
        self._wants_fused = fused

    def load(self, device: torch.device) -> None:
        """Find, read, load and check the model. Raises ConfigError or EngineStartFailed."""
        folder = source.resolve(self._source, self._revision) if self._source else source.default_model()
        facts = checkpoint.read(folder)
        self._facts = facts
        self._pooling = self._wanted_pooling or facts.pooling
        self._encoder = encoder.load(facts.folder, device, self._dtype, facts.stored_dtype)
        self._max_length = self._limit_length(facts)
        selfcheck.choose(self._encoder, self._max_length)
        self.padded = self._encoder.runs == "padded"
        self._forward = Forward(self._encoder, self._head)

    def collate(self, inputs: Mapping[str, Tensor], device: torch.device) -> Batch | Staged:
        """Check ids and lengths, and move them to the device. Raises InvalidRequest naming the first item that is wrong.

        An id outside the vocabulary would be a device-side assertion, which ends the engine process.
        """
        tensor = inputs["input_ids"]
        if tensor.signature != ("i32", (-1,)):
            raise InvalidRequest("input_ids must be ragged i32", {"field": "input_ids"})
        ids = np.frombuffer(tensor.data, "<i4")
        offsets = np.asarray(tensor.offsets, dtype=np.int64)
        lengths = np.diff(offsets)
        self._check(ids, offsets, lengths)
        return self._forward.pack(ids, lengths)

    def forward(
        self, batch: Batch | Staged, *, normalize: bool | None = None, dimensions: int = 0
    ) -> Mapping[str, torch.Tensor]:
        """`{"embedding": float32 [items, dimensions]}`.

        normalize: to unit length or not; None means as the model's files say. dimensions: keep that many, before
        normalising; 0 means all. Raises InvalidRequest if the model has fewer.
        """
        size = self._encoder.hidden_size
        _check_params(normalize, dimensions, size)
        vectors, unit = self._forward(batch)
        wants_unit = self._facts.normalize if normalize is None else normalize
        if dimensions in (0, size):
            return {"embedding": unit if wants_unit else vectors}
        vectors = vectors[:, :dimensions]
        return {"embedding": normalized(vectors) if wants_unit else vectors.contiguous()}

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
            run({"input_ids": Tensor.from_rows(rows, "i32")})
            tokens *= 4

    def describe(self, info: ModelInfo) -> None:
        """State what clients need: the tokenizer's digest, lengths, prompts, dimensions and how the model runs."""
        facts = self._facts
        info.kind = "embedding"
        info.source = self._source or source.DEFAULT_MODEL
        info.dtype = str(self._encoder.dtype).removeprefix("torch.")
        info.text = TextInfo(
            digest=hashlib.sha256(facts.tokenizer_json).hexdigest(),
            max_length=self._max_length,
            vocab_size=self._encoder.vocab_size,
            prompts=facts.prompts,
            default_prompt=facts.default_prompt,
        )
        info.dimensions = self._encoder.hidden_size
        info.pooling = self._pooling
        info.normalize = facts.normalize
        info.runs = self._forward.runs

    @property
    def encoder_model(self) -> Any:
        """The Transformers model."""
        return self._encoder.model

    def tokenizer_json(self) -> bytes:
        """The tokenizer.json that makes this model's token ids."""
        return self._facts.tokenizer_json

    def _head(self, hidden: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled vectors as they are, and of unit length; both float32 `[items, dimensions]`."""
        return pool_and_normalize(hidden, offsets, self._pooling)

    def _limit_length(self, facts: checkpoint.Checkpoint) -> int:
        positions = facts.positions - self._encoder.first_position
        if facts.positions and self._wanted_length > positions:
            raise ConfigError(f"max_length {self._wanted_length} exceeds the model's {positions} positions")
        length = self._wanted_length or facts.max_length
        return min(length, positions) if facts.positions else length

    def _check(self, ids: NDArray[np.int32], offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        wrong = (lengths < 1) | (lengths > self._max_length)
        if wrong.any():
            item = int(wrong.argmax())
            raise InvalidRequest(
                f"input {item} has {lengths[item]} tokens, and must have 1 to max_length = {self._max_length}",
                {"item": item, "limit": "max_length"},
            )
        unknown = (ids < 0) | (ids >= self._encoder.vocab_size)
        if unknown.any():
            item = int(offsets.searchsorted(unknown.argmax(), "right")) - 1
            raise InvalidRequest(
                f"input {item} has a token id outside 0 … {self._encoder.vocab_size - 1}",
                {"item": item, "limit": "vocab_size"},
            )


def _check_params(normalize: object, dimensions: object, size: int) -> None:
    if not isinstance(normalize, bool | None):
        raise InvalidRequest("normalize must be true or false", {"field": "normalize"})
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 0 <= dimensions <= size:
        raise InvalidRequest(f"dimensions must be a number between 1 and {size}", {"field": "dimensions"})
