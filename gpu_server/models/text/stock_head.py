"""The head of an unmodified Transformers model, run on hidden states that come from elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from gpu_server.errors import EngineStartFailed
from gpu_server.models.text import selfcheck
from gpu_server.models.text.batch import Batch
from gpu_server.models.text.encoder import Encoder


class StockHead:
    """What a `*For…` model does with its encoder's hidden states: its own forward, its encoder replaced by a stand-in."""

    def __init__(self, whole: Any, device: torch.device) -> None:
        self.encoder = Encoder(whole.base_model, device)
        self.config = whole.config
        self._whole = whole
        text = whole.config.get_text_config()
        if text.pad_token_id is None:
            # Heads that look for the last token refuse batches without one. No id is −1, so to them all are tokens.
            text.pad_token_id = -1
        self._given = _Given(self.encoder)

    def __call__(
        self, hidden: torch.Tensor, ids: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits of hidden states `[items, width, hidden_size]`, in the model's dtype.

        ids, mask: `[items, width]`, for heads that look for the last token or average; without them all are tokens.
        """
        if ids is None:
            ids = torch.full(hidden.shape[:2], _no_padding(self.encoder.pad_id), device=hidden.device)
        self._put(self._given)
        logits: torch.Tensor = self._whole(input_ids=ids, attention_mask=mask, inputs_embeds=hidden).logits
        return logits

    def whole(self, batch: Batch) -> torch.Tensor:
        """Logits of a batch as the unmodified model gives them, padded. The encoder must run padded."""
        model = self.encoder.model
        self._put(model)
        left = getattr(model, "pooler", None)
        model.pooler = self.encoder.pooler
        try:
            logits: torch.Tensor = self._whole(**self.encoder.padded(batch)).logits
        finally:
            model.pooler = left
        return logits

    @torch.inference_mode()
    def check_by_token(self, max_length: int) -> int:
        """Make sure that logits of each token depend on its hidden state alone; returns how many there are of a token.

        Raises EngineStartFailed, WrongDtype.
        """
        encoder = self.encoder
        ids, lengths = selfcheck.probe(encoder, max_length)
        runs = encoder.runs
        encoder.use("padded")
        want = selfcheck.one_by_one(encoder, self.whole, selfcheck.each(encoder, ids, lengths))
        encoder.use(runs)
        got = self(encoder(encoder.pack(ids, lengths))[None])[0]
        if not selfcheck.outputs_agree([got], [torch.cat([logits[0] for logits in want])], encoder.dtype):
            raise EngineStartFailed("the model's head does not give the same numbers in a batch as alone")
        return got.shape[1]

    def _put(self, module: torch.nn.Module) -> None:
        setattr(self._whole, self._whole.base_model_prefix, module)


class _Output(BaseModelOutputWithPoolingAndCrossAttentions):
    """Has no more than it was given, and says None of what only some families' outputs have."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _Given(torch.nn.Module):
    """Stands in for an encoder: the embeddings it gets are its hidden states."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._pooler = encoder.pooler
        # ALBERT's pooler is in two parts, and takes the first token outside of them.
        self._activation = getattr(encoder.model, "pooler_activation", None)

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **options: Any) -> Any:
        return _Output(
            last_hidden_state=inputs_embeds,
            pooler_output=self._pooled(inputs_embeds),
        )

    def _pooled(self, hidden: torch.Tensor) -> Any:
        if self._pooler is None:
            return None
        if self._activation is None:
            return self._pooler(hidden)
        return self._activation(self._pooler(hidden[:, 0]))


def labels_of(config: Any) -> tuple[str, ...]:
    """Names of a Transformers model's labels, in the order of its logits."""
    return tuple(str(config.id2label[i]) for i in range(config.num_labels))


def _no_padding(pad_id: int) -> int:
    return 0 if pad_id else 1
