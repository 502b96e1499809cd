"""What a tiny config of each family needs beside what all have."""

from __future__ import annotations

from typing import Any

_GQA = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bert": {},
    "camembert": {"pad_token_id": 3},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "ernie": {"use_task_id": True},
    "eurobert": {"num_key_value_heads": 2},
    "gemma2": {**_GQA, "attn_logit_softcapping": 5.0, "sliding_window": 8},
    "gemma3_text": {**_GQA, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2,
                    "num_hidden_layers": 4},
    "gte": {},
    "ibert": {"pad_token_id": 1},
    "jina_embeddings_v3": {},
    "layoutlm": {},
    "llama": _GQA,
    "longformer": {"attention_window": 16, "pad_token_id": 1},
    "mistral": {**_GQA, "sliding_window": 8},
    "modernbert": {"local_attention": 16},
    "mpnet": {"pad_token_id": 1},
    "nomic_bert": {},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": _GQA,
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
}  # fmt: skip
