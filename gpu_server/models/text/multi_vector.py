"""BGE-M3: dense, sparse and ColBERT vectors of one forward."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import load_file

from gpu_server.errors import ConfigError
from gpu_server.models.base import Ragged
from gpu_server.models.landed import Landed
from gpu_server.models.text import checkpoint, source
from gpu_server.models.text.embedding import EMBEDDING, TOKEN_EMBEDDINGS, EmbeddingModel, Named
from gpu_server.models.text.graphs import Outputs
from gpu_server.models.text.model import TextBatch
from gpu_server.models.text.pooling import normalized
from gpu_server.models.text.sparse import INDICES, VALUES

COLBERT = "colbert"
SPARSE = "sparse"
ALL = "all"

_NOT_LEXICAL = frozenset({"<s>", "</s>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[UNK]"})


class MultiVectorModel(EmbeddingModel):
    """An embedding model with BGE-M3's `sparse_linear` and `colbert_linear` beside its weights."""

    may_round = False
    kinds_of_output = (EMBEDDING, TOKEN_EMBEDDINGS, SPARSE, COLBERT, ALL)

    def _named(
        self, output: str, batch: TextBatch, ran: Outputs, normalize: bool | None, dimensions: int
    ) -> Named:
        if output in (EMBEDDING, TOKEN_EMBEDDINGS):
            return super()._named(output, batch, ran, normalize, dimensions)
        named: dict[str, torch.Tensor | Ragged | Landed] = {}
        if output == ALL:
            named[EMBEDDING] = self._embedding(ran, normalize, dimensions)
        if output in (SPARSE, ALL):
            named |= self._sparse(ran.hidden, batch)
        if output in (COLBERT, ALL):
            named[COLBERT] = self._colbert(ran.hidden, batch)
        return named

    def _sparse(self, hidden: torch.Tensor, batch: TextBatch) -> dict[str, Ragged]:
        """The largest weight of each token id that occurs in an item, special tokens left out. Waits for the device."""
        ids = torch.from_numpy(batch.ids.astype(np.int64)).to(hidden.device)
        item_of = torch.from_numpy(np.repeat(np.arange(len(batch.lengths)), batch.lengths)).to(hidden.device)
        weights = self._sparse_linear(hidden)[:, 0].float().relu()
        weights[torch.isin(ids, self._not_lexical)] = 0
        places, where = torch.unique(item_of * self._encoder.vocab_size + ids, return_inverse=True)
        largest = weights.new_zeros(len(places)).scatter_reduce_(0, where, weights, "amax")
        kept = largest != 0
        places, values = places[kept], largest[kept]
        counts = torch.bincount(places // self._encoder.vocab_size, minlength=len(batch.lengths))
        lengths = counts.cpu().numpy()
        return {
            INDICES: Ragged((places % self._encoder.vocab_size).int(), lengths),
            VALUES: Ragged(values, lengths),
        }

    def _colbert(self, hidden: torch.Tensor, batch: TextBatch) -> Ragged:
        """A unit vector of every token but the first, float32."""
        keep = np.ones(len(batch.ids), bool)
        keep[batch.lengths.cumsum() - batch.lengths] = False
        kept = hidden[torch.from_numpy(keep.nonzero()[0]).to(hidden.device)]
        return Ragged(normalized(self._colbert_linear(kept).float()), batch.lengths - 1)

    def _settle(self) -> None:
        super()._settle()
        self._sparse_linear = self._linear("sparse")
        self._colbert_linear = self._linear("colbert")
        added = json.loads(self._facts.tokenizer_json)["added_tokens"]
        special = [token["id"] for token in added if token["content"] in _NOT_LEXICAL]
        self._not_lexical = torch.tensor(special, device=self._encoder.device)

    def _linear(self, part: str) -> torch.nn.Linear:
        path = checkpoint.linear(source.find(self._source, self._revision), part)
        assert path is not None
        if path.suffix == ".pt":
            weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        else:
            weights = load_file(path)
        try:
            layer = torch.nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
            layer.load_state_dict(weights)
        except (KeyError, RuntimeError) as error:
            raise ConfigError(f"{path}: no linear layer: {str(error).splitlines()[0]}") from None
        return layer.to(self._encoder.device, self._encoder.dtype).requires_grad_(False)
