"""Rerankers and classifiers: logits of each item, from the head that its Transformers model brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from gpu_server.errors import EngineStartFailed
from gpu_server.models import device_errors
from gpu_server.models.landed import Landed
from gpu_server.models.text import selfcheck, token_types
from gpu_server.models.text.batch import Batch
from gpu_server.models.text.encoder import Encoder, load_model
from gpu_server.models.text.model import PAIRS, TextBatch, TextModel
from gpu_server.models.text.pooling import first_tokens, last_tokens
from gpu_server.models.text.stock_head import StockHead, labels_of
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire.documents import Activation, ModelInfo

Reads = Literal["first", "last", "all", "whole"]
"""What the head is given: the first or last hidden state of each item, all of them padded, or nothing: the whole stock
model runs padded, because its head does something that cannot be done from outside."""

_PICK: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"first": first_tokens, "last": last_tokens}
)


class SequenceModel(TextModel):
    """Any `*ForSequenceClassification`; one label makes it a reranker, more a classifier. It takes texts and pairs."""

    def forward(self, batch: TextBatch) -> Mapping[str, torch.Tensor | Landed]:
        """`{"logits": float32 [items, labels]}`, without activation."""
        logits = self._logits(batch)
        return {"logits": logits if isinstance(logits, Landed) else logits.float()}

    def describe(self, info: ModelInfo) -> None:
        """As every text model, and the labels with the activation that makes scores of their logits."""
        super().describe(info)
        config = self._stock.config
        info.labels = labels_of(config)
        info.kind = "reranker" if len(info.labels) == 1 else "classifier"
        info.activation = self._facts.activation or _activation(len(info.labels), config.problem_type)

    def _logits(self, batch: TextBatch) -> torch.Tensor | Landed:
        if self._reads == "whole":
            assert isinstance(batch.packed, Batch)
            return self._stock.whole(batch.packed)
        ran = self._forward(batch.packed)
        if self._reads in _PICK and not (self._reads == "last" and self._ends_in_padding(batch)):
            return ran.pooled[0] if ran.landed is None else ran.landed
        # A batch that was staged for a graph has no ids of its own any more.
        return self._feed("all", ran.hidden, self._encoder.pack(batch.ids, batch.lengths))

    def _ends_in_padding(self, batch: TextBatch) -> bool:
        """Whether an item's last token is the padding token, which heads that look for the last one pass over."""
        last = batch.ids[np.cumsum(batch.lengths) - 1]
        return bool((last == self._stock.config.get_text_config().pad_token_id).any())

    def _head(self, hidden: torch.Tensor, offsets: torch.Tensor) -> Sequence[torch.Tensor]:
        if self._reads not in _PICK:
            return super()._head(hidden, offsets)
        return [self._stock(_PICK[self._reads](hidden, offsets)[:, None])]

    def _lands(self) -> int | None:
        return 0 if self._reads in _PICK else None

    def _feed(self, reads: Reads, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Logits `[items, labels]` of hidden states `[tokens, hidden_size]`."""
        if reads in _PICK:
            return self._stock(_PICK[reads](hidden, batch.layout.offsets)[:, None])
        padded = self._encoder.padded(batch)
        return self._stock(batch.layout.padded(hidden), padded["input_ids"], padded["attention_mask"])

    def _forget_weights(self) -> None:
        super()._forget_weights()
        del self._stock

    def _load_encoder(self, device: torch.device, dtype: torch.dtype) -> Encoder:
        whole = load_model(AutoModelForSequenceClassification, self._facts.folder, device, dtype)
        self._stock = StockHead(whole, device)
        if self._stock.encoder.token_types > 1 and token_types.given(self._facts.folder):
            self.inputs = PAIRS
        return self._stock.encoder

    @torch.inference_mode()
    def _settle(self) -> None:
        """Find out what the head reads, by the logits that the unmodified model gives each item alone."""
        encoder = self._encoder
        ids, lengths = selfcheck.probe(encoder, self._max_length)
        types = selfcheck.some_types(encoder, len(ids)) if self.inputs is PAIRS else None
        runs = encoder.runs
        encoder.use("padded")
        alone = selfcheck.each(encoder, ids, lengths, types)
        want = torch.cat(selfcheck.one_by_one(encoder, self._stock.whole, alone))
        encoder.use(runs)
        batch = encoder.pack(ids, lengths, types)
        self._reads = self._best(encoder(batch), batch, want)
        if self._reads == "whole":
            encoder.use("padded")
            if not _distance(self._stock.whole(batch), want) <= selfcheck.TOLERANCE[encoder.dtype]:
                raise EngineStartFailed("the model does not give the same numbers in a batch as alone")

    def _best(self, hidden: torch.Tensor, batch: Batch, want: torch.Tensor) -> Reads:
        """The first way to feed the head that is about as right as the best, or "whole" where none is right."""
        errors: dict[Reads, float] = {}
        for reads in self._candidates():
            try:
                errors[reads] = _distance(self._feed(reads, hidden, batch), want)
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
                device_errors.pass_on(error)
        limit = min(selfcheck.TOLERANCE[hidden.dtype], 2 * min(errors.values(), default=0.0) + 1e-6)
        return next((reads for reads, error in errors.items() if error <= limit), "whole")

    def _candidates(self) -> tuple[Reads, ...]:
        """A tokenizer that ends with the padding token hides the last token from heads that look for it."""
        (ids,) = TextTokenizer(self._facts.tokenizer_json, self._text_info()).encode(["a"])
        return ("first", "all") if ids[-1] == self._encoder.pad_id else ("first", "last", "all")


def _activation(labels: int, problem_type: str | None) -> Activation:
    """What Transformers makes scores with; of a single logit, trained as it may be, what sentence-transformers does."""
    if labels == 1 or problem_type == "multi_label_classification":
        return "sigmoid"
    return "identity" if problem_type == "regression" else "softmax"


def _distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference, over the norm where that is above 1: logits may all be near 0."""
    return float((got.float() - want.float()).norm() / want.float().norm().clamp_min(1.0))
