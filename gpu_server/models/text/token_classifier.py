"""Token classifiers, such as named-entity recognisers: logits of every token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import AutoModelForTokenClassification

from gpu_server.models.base import Ragged
from gpu_server.models.text.encoder import Encoder, load_model
from gpu_server.models.text.model import TextBatch, TextModel
from gpu_server.models.text.stock_head import StockHead, labels_of
from gpu_server.wire.documents import ModelInfo


class TokenClassifier(TextModel):
    """Any `*ForTokenClassification`."""

    def forward(self, batch: TextBatch) -> Mapping[str, Ragged]:
        """`{"logits": float32 [tokens, labels] an item}`, special tokens included, without activation."""
        hidden = self._forward(batch.packed).hidden
        return {"logits": batch.ragged(self._stock(hidden[None])[0].float())}

    def describe(self, info: ModelInfo) -> None:
        """As every text model, and the labels."""
        super().describe(info)
        info.kind = "token_classifier"
        info.labels = labels_of(self._stock.config)
        info.activation = "softmax"

    def _forget_weights(self) -> None:
        super()._forget_weights()
        del self._stock

    def _load_encoder(self, device: torch.device, dtype: torch.dtype) -> Encoder:
        whole = load_model(AutoModelForTokenClassification, self._facts.folder, device, dtype)
        self._stock = StockHead(whole, device)
        return self._stock.encoder

    def _settle(self) -> None:
        self._stock.check_by_token(self._max_length)
