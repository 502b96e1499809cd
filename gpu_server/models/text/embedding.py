"""Embedding models: one vector an item, or on request one a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from gpu_server.errors import ConfigError, InvalidRequest
from gpu_server.models.base import Ragged
from gpu_server.models.landed import Landed
from gpu_server.models.text import dense, prompts
from gpu_server.models.text.graphs import Outputs
from gpu_server.models.text.model import TextBatch, TextModel
from gpu_server.models.text.pooling import normalized, pool, pool_after, pool_and_normalize
from gpu_server.tokenizing import PROMPT_LENGTH
from gpu_server.wire.documents import ModelInfo

EMBEDDING = "embedding"
TOKEN_EMBEDDINGS = "token_embeddings"

Named = Mapping[str, torch.Tensor | Ragged | Landed]


class EmbeddingModel(TextModel):
    """Sentence embeddings of any Hugging Face encoder, with the Dense modules of sentence-transformers."""

    params: Mapping[str, Any] = MappingProxyType({"normalize": None, "dimensions": 0, "output": EMBEDDING})
    kinds_of_output: Sequence[str] = (EMBEDDING, TOKEN_EMBEDDINGS)
    may_round = True

    def forward(
        self,
        batch: TextBatch,
        *,
        normalize: bool | None = None,
        dimensions: int | None = None,
        output: str = EMBEDDING,
        prompt_length: int = 0,
    ) -> Named:
        """`{"embedding": float32 [items, dimensions]}`, or what `output` names.

        normalize: to unit length or not; None means as the model's files say. dimensions: keep that many, before
        normalising; 0 means all, None as the model's files say. output: one of `kinds_of_output`; "token_embeddings" are the
        hidden states of every token, float32 `[tokens, hidden_size]` an item. prompt_length: leave that many tokens of each
        item out of the pooling; a parameter of models that pool without their prompts. Raises InvalidRequest if the model
        has not what is asked for.
        """
        if output not in self.kinds_of_output:
            known = ", ".join(self.kinds_of_output)
            raise InvalidRequest(f"output must be one of {known}", {"field": "output"})
        if dimensions is None:
            dimensions = self.params["dimensions"]
        _check_params(normalize, dimensions, self._dimensions)
        _check_prompt_length(prompt_length)
        ran = self._forward(batch.packed)
        if prompt_length:
            ran = ran._replace(pooled=self._pool_after(ran.hidden, batch, prompt_length), landed=None)
        return self._named(output, batch, ran, normalize, dimensions)

    def describe(self, info: ModelInfo) -> None:
        """As every text model, and the embedding's dimensions, pooling and length."""
        super().describe(info)
        info.kind = "embedding"
        if info.text is not None and not self._facts.pools_prompt:
            info.text.prompt_lengths = prompts.lengths(self._facts, info.text)
        info.dimensions = self._dimensions
        info.pooling = self._facts.pooling
        info.normalize = self._facts.normalize
        info.outputs = tuple(self.kinds_of_output)

    def _named(
        self, output: str, batch: TextBatch, ran: Outputs, normalize: bool | None, dimensions: int
    ) -> Named:
        if output == TOKEN_EMBEDDINGS:
            return {TOKEN_EMBEDDINGS: batch.ragged(ran.hidden.float())}
        return {EMBEDDING: self._embedding(ran, normalize, dimensions)}

    def _embedding(self, ran: Outputs, normalize: bool | None, dimensions: int) -> torch.Tensor | Landed:
        vectors, unit = ran.pooled
        wants_unit = self._facts.normalize if normalize is None else normalize
        if dimensions in (0, self._dimensions):
            if ran.landed is not None and wants_unit == self._facts.normalize:
                return ran.landed
            return unit if wants_unit else vectors
        vectors = vectors[:, :dimensions]
        return normalized(vectors) if wants_unit else vectors.contiguous()

    def _settle(self) -> None:
        if not self._facts.pools_prompt:
            self.params = {**self.params, PROMPT_LENGTH: 0}
        size = self._encoder.hidden_size * len(self._facts.pooling.split("+"))
        self._dense = dense.load(self._facts.dense, self._encoder.device)
        for layer in self._dense:
            if layer.in_features != size:
                raise ConfigError(
                    f"{self._facts.folder}: a Dense module takes {layer.in_features} numbers, not {size}"
                )
            size = layer.out_features
        self._dimensions = size
        self.params = {**self.params, "dimensions": min(self._facts.dimensions, size)}

    def _head(self, hidden: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors as they are, and of unit length; both float32 `[items, dimensions]`."""
        if not self._dense:
            return pool_and_normalize(hidden, offsets, self._facts.pooling)
        return self._through_dense(pool(hidden, offsets, self._facts.pooling))

    def _lands(self) -> int:
        return int(self._facts.normalize)

    def _pool_after(
        self, hidden: torch.Tensor, batch: TextBatch, prompt_length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ends = torch.from_numpy(batch.lengths.cumsum()).to(hidden.device)
        offsets = torch.nn.functional.pad(ends, (1, 0))
        return self._through_dense(pool_after(hidden, offsets, self._facts.pooling, prompt_length))

    def _through_dense(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for layer in self._dense:
            vectors = layer(vectors)
        return vectors, normalized(vectors)


def _check_prompt_length(length: object) -> None:
    if not isinstance(length, int) or isinstance(length, bool) or length < 0:
        raise InvalidRequest("prompt_length must be a number of tokens, 0 or more", {"field": PROMPT_LENGTH})


def _check_params(normalize: object, dimensions: object, size: int) -> None:
    if not isinstance(normalize, bool | None):
        raise InvalidRequest("normalize must be true or false", {"field": "normalize"})
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 0 <= dimensions <= size:
        raise InvalidRequest(f"dimensions must be a number between 1 and {size}", {"field": "dimensions"})
