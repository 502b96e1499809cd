"""What a tiny config of each family needs beside what all have, and which families run packed in float32 on a CPU."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import pytest

_GQA = {"num_key_value_heads": 2, "head_dim": 8}
COMMON: dict[str, dict[str, Any]] = {
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
"""Those that people serve."""

_SECTIONS = {
    **_GQA,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}
_OTHERS: dict[str, dict[str, Any]] = {
    "bitnet": _GQA,
    "codegen": {"rotary_dim": 8},
    "cwm": {**_GQA, "sliding_window": 8},
    "exaone4": {**_GQA, "sliding_window": 8},
    "gemma": _GQA,
    "glm4v_text": _SECTIONS,
    "glm_image_text": _SECTIONS,
    "glm_ocr_text": _SECTIONS,
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 8, "num_layers": 3},
    "gpt_oss": {**_GQA, "sliding_window": 8},
    "gptj": {"rotary_dim": 8},
    "helium": _GQA,
    "hunyuan_v1_dense": _GQA,
    "hunyuan_v1_moe": _GQA,
    "iquestcoder": _GQA,
    "lfm2": _GQA,
    "llama4_text": _GQA,
    "minimax": _GQA,
    "ministral": _GQA,
    "ministral3": _GQA,
    "mixtral": _GQA,
    "molmo2_text": _GQA,
    "nemotron": _GQA,
    "neomme": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "num_hidden_layers": 4,
               "layer_types": ["sliding_attention", "full_attention"] * 2},
    "phimoe": _GQA,
    "qwen2_5_vl_text": _SECTIONS,
    "qwen2_vl_text": _SECTIONS,
    "qwen3_vl_text": _SECTIONS,
    "seed_oss": _GQA,
    "squeezebert": {"embedding_size": 32},
    "stablelm": _GQA,
}  # fmt: skip

PACKED = [
    "albert", "apertus", "arcee", "aria_text", "bert", "bert-generation", "biogpt", "bitnet", "camembert",
    "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "data2vec-text", "deepseek_v3", "diffllama", "distilbert",
    "electra", "embedding_gemma2_text", "ernie", "ernie4_5", "esm", "esmc", "eurobert", "exaone4", "flex_olmo",
    "fuyu", "gemma", "gemma3_text", "gemma4_unified_text", "glm", "glm4", "glm4v_text", "glm_image_text",
    "glm_ocr_text", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granite_docling_text", "granitemoe",
    "granitemoeshared", "gte", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax",
    "internlm3", "iquestcoder", "jais2", "jetmoe", "jina_embeddings_v3", "lfm2", "llama", "llama4_text",
    "minicpm3", "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "modernbert", "modernbert-decoder",
    "molmo2_text", "moshi", "muse_glimmer_text", "nanochat", "neomme", "nomic_bert", "olmo", "olmo2", "olmo3",
    "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3",
    "qwen3_vl_text", "roberta", "roberta-prelayernorm", "seed_oss", "smollm3", "starcoder2", "ultrabert",
    "xlm-roberta", "xlm-roberta-xl", "youtu",
]  # fmt: skip
PADDED = [
    "big_bird", "bloom", "clip_text_model", "codegen", "deberta", "deberta-v2", "falcon", "falcon_mamba",
    "flaubert", "gemma2", "gpt_neo", "gpt_neox_japanese", "gpt_oss", "gptj", "granite_swa", "granitemoe_swa",
    "ibert", "imagegpt", "layoutlm", "lfm3", "longformer", "mamba", "markuplm", "megatron-bert", "minimax",
    "mpnet", "mpt", "mra", "nemotron", "olmo_hybrid", "openai-gpt", "openai_privacy_filter", "recurrent_gemma",
    "rembert", "roformer", "rwkv", "splinter", "squeezebert", "stablelm", "tapas", "tipsv2_text_model",
    "vaultgemma", "visual_bert", "xglm", "xlm",
]  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {name: {} for name in PACKED + PADDED} | COMMON | _OTHERS


def with_heads(known: Container[str]) -> list[Any]:
    """Families that are known to have some head; those that few serve as long tests, a quarter of a second each."""
    return [
        name if name in COMMON else pytest.param(name, marks=pytest.mark.long)
        for name in FAMILIES
        if name in known
    ]
