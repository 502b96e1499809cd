"""Random weights in the shapes of well-known encoders, for benchmarks, and the sums that a forward needs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpu_server.errors import ConfigError

_BERT = {"model_type": "bert", "vocab_size": 30_522}
SHAPES: dict[str, dict[str, Any]] = {
    "minilm": {**_BERT, "num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {**_BERT, "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12,
                  "intermediate_size": 3072},
    "bert-large": {**_BERT, "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16,
                   "intermediate_size": 4096},
    "modernbert-base": {"model_type": "modernbert", "vocab_size": 50_368, "num_hidden_layers": 22, "hidden_size": 768,
                        "num_attention_heads": 12, "intermediate_size": 1152, "pad_token_id": 0},
    "qwen3-0.6b": {"model_type": "qwen3", "vocab_size": 32_000, "num_hidden_layers": 28, "hidden_size": 1024,
                   "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
                   "dtype": "bfloat16", "architectures": ["Qwen3ForCausalLM"]},
}  # fmt: skip


@contextmanager
def folder(shape: str) -> Iterator[Path | None]:
    """A folder with random weights of a shape, deleted afterwards; None for "". Raises ConfigError on other names."""
    if not shape:
        yield None
        return
    if shape not in SHAPES:
        raise ConfigError(f"shape {shape!r} is unknown; known: {', '.join(SHAPES)}")
    from transformers import AutoConfig, AutoModel

    settings = dict(SHAPES[shape])
    settings["max_position_embeddings"] = 512
    with tempfile.TemporaryDirectory(prefix="gpu-server-shape-") as name:
        torch.manual_seed(0)
        model = AutoModel.from_config(  # type: ignore[no-untyped-call]
            AutoConfig.for_model(settings.pop("model_type"), **settings)
        )
        model.save_pretrained(name)
        (Path(name) / "tokenizer.json").write_text(json.dumps(_TOKENIZER))
        yield Path(name)


def operations(model: Any, lengths: list[int]) -> float:
    """Floating-point operations of a forward: 2 × layer weights × tokens + 4 × layers × attention width × Σ length²."""
    encoder = getattr(model, "encoder_model", None)
    if encoder is None:
        return 0.0
    config = encoder.config.get_text_config()
    embeddings = sum(
        p.numel() for m in encoder.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()
    )
    weights = sum(p.numel() for p in encoder.parameters()) - embeddings
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 4 * config.num_hidden_layers * width * sum(n * n for n in lengths)
    return float(2 * weights * sum(lengths) + attention)


_TOKENIZER: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
}  # fmt: skip
