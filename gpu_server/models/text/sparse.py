"""SPLADE: one weight for each word of the vocabulary that a text is about, from a masked-language-model head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import AutoModelForMaskedLM

from gpu_server.models.base import Ragged
from gpu_server.models.text import checkpoint
from gpu_server.models.text.encoder import Encoder, load_model
from gpu_server.models.text.model import TextBatch, TextModel
from gpu_server.models.text.pooling import owners
from gpu_server.models.text.stock_head import StockHead
from gpu_server.wire.documents import ModelInfo

INDICES = "sparse_indices"
VALUES = "sparse_values"

# Logits of all tokens at once would be tokens × vocabulary: this many numbers are made at a time.
_CHUNK_NUMBERS = 1 << 25


class SparseModel(TextModel):
    """Any `*ForMaskedLM` with SPLADE pooling."""

    poolings = (checkpoint.SPLADE,)

    def forward(self, batch: TextBatch) -> Mapping[str, Ragged]:
        """`{"sparse_indices": int32, "sparse_values": float32}`, what is not 0 of each item, by ascending index."""
        hidden = self._forward(batch.packed).hidden
        ends = torch.from_numpy(batch.lengths.cumsum()).to(hidden.device)
        offsets = torch.nn.functional.pad(ends, (1, 0))
        weights = self._weights(hidden, offsets)
        kept = self._facts.splade.kept
        return sparse_rows(_largest(weights, kept) if kept else weights)

    def describe(self, info: ModelInfo) -> None:
        """As every text model, and the size of the vocabulary that vectors have a place for."""
        super().describe(info)
        info.kind = "sparse"
        info.dimensions = self._dimensions
        info.pooling = "splade"

    def _weights(self, hidden: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """float32 `[items, vocabulary]`."""
        splade = self._facts.splade
        weights = hidden.new_zeros((len(offsets) - 1, self._dimensions), dtype=torch.float32)
        item_of = owners(offsets, len(hidden))
        step = max(1, _CHUNK_NUMBERS // self._dimensions)
        for states, items in zip(hidden.split(step), item_of.split(step), strict=True):
            logits = self._stock(states[None])[0].float().relu_()
            if splade.total:
                weights.index_add_(0, items, self._activated(logits))
            else:
                # Both activations grow with the logit, so the largest may be taken before them.
                weights.scatter_reduce_(0, items[:, None].expand_as(logits), logits, "amax")
        return weights if splade.total else self._activated(weights)

    def _activated(self, logits: torch.Tensor) -> torch.Tensor:
        weights = logits.log1p_()
        return weights.log1p_() if self._facts.splade.activation == "log1p_relu" else weights

    def _forget_weights(self) -> None:
        super()._forget_weights()
        del self._stock

    def _load_encoder(self, device: torch.device, dtype: torch.dtype) -> Encoder:
        whole = load_model(AutoModelForMaskedLM, self._facts.folder, device, dtype)
        self._stock = StockHead(whole, device)
        return self._stock.encoder

    def _settle(self) -> None:
        self._dimensions = self._stock.check_by_token(self._max_length)


def _largest(weights: torch.Tensor, count: int) -> torch.Tensor:
    """The largest `count` of each row, and 0 for the others."""
    values, places = weights.topk(min(count, weights.shape[1]), dim=1)
    return torch.zeros_like(weights).scatter_(1, places, values)


def sparse_rows(weights: torch.Tensor) -> dict[str, Ragged]:
    """What is not 0 in each row of float32 `[items, vocabulary]`. Waits for the device."""
    places = weights.nonzero()
    lengths = torch.bincount(places[:, 0], minlength=len(weights)).cpu().numpy()
    values = weights[places[:, 0], places[:, 1]]
    return {INDICES: Ragged(places[:, 1].int(), lengths), VALUES: Ragged(values, lengths)}
