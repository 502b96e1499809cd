"""What the self-check finds out: texts past a window, and numbers that depend on the neighbour's length."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import CPU, facts, rows_of
from transformers import AutoModel

from gpu_server import specs
from gpu_server.config import Config, EngineConfig, ModelConfig
from gpu_server.engine import loader
from gpu_server.errors import EngineStartFailed
from gpu_server.models.text import attention, encoder, selfcheck
from gpu_server.models.text.encoder import Encoder
from gpu_server.models.text.model import TextModel

MakeModel = Callable[..., Path]
GQA: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
BOTH_WAYS = {**GQA, "is_causal": False}
QWEN2 = {"num_key_value_heads": 2, "use_sliding_window": True, "max_window_layers": 1}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
           "shared_expert_intermediate_size": 16}  # fmt: skip
LLAMA4 = {**GQA, "attention_chunk_size": 64, "num_local_experts": 2, "num_experts_per_tok": 1,
          "intermediate_size_mlp": 48, "moe_layers": []}  # fmt: skip
GEMMA3 = {**GQA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
          "num_hidden_layers": 3}  # fmt: skip
LAYERS = {**GQA, "use_sliding_window": True, "max_window_layers": 0}


def checked(folder: Path, max_length: int, **options: Any) -> Encoder:
    made = encoder.load(folder, CPU, **options)
    selfcheck.choose(made, max_length)
    return made


def test_past_a_window_too_wide_to_check_on_a_cpu_it_runs_padded_and_says_so(
    make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model("mistral", **GQA, sliding_window=1100, max_position_embeddings=4096)
    with caplog.at_level(logging.INFO):
        assert checked(folder, 1100).runs == "packed"
        assert "runs padded" not in caplog.text
        assert checked(folder, 4096).runs == "padded"
    assert "runs padded" in caplog.text


@pytest.mark.parametrize(
    ("family", "runs", "config"),
    [
        ("llama4_text", "padded", LLAMA4),
        ("qwen2_moe", "padded", {**QWEN2, **EXPERTS, "sliding_window": 510}),
        ("phimoe", "padded", {"num_key_value_heads": 2, "num_local_experts": 2, "sliding_window": 510}),
        ("mistral", "packed", {**BOTH_WAYS, "sliding_window": 16}),
        ("mistral", "packed", {**BOTH_WAYS, "sliding_window": 510}),
        ("mistral", "packed", {**GQA, "sliding_window": 510}),
        ("qwen2", "packed", {**QWEN2, "sliding_window": 16, "is_causal": False}),
        ("qwen3", "packed", {**BOTH_WAYS, **LAYERS, "sliding_window": 510}),
        ("gemma3_text", "packed", {**GEMMA3, "sliding_window": 510}),
        ("gemma3_text", "packed", {**GEMMA3, "sliding_window": 32, "use_bidirectional_attention": True}),
        ("gemma3_text", "packed", {**GEMMA3, "sliding_window": 1020, "use_bidirectional_attention": True}),
        ("modernbert", "packed", {"local_attention": 16}),
        ("modernbert", "packed", {"local_attention": 1020}),
    ],
)
def test_a_text_longer_than_the_window_is_as_transformers_has_it(
    make_model: MakeModel, family: str, runs: str, config: dict[str, Any]
) -> None:
    folder = make_model(family, max_position_embeddings=2048, **config)
    rows = rows_of([5, 700, 9, 300])
    made = checked(folder, 2048)
    stock = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        want = [stock(input_ids=torch.from_numpy(row)[None].long()).last_hidden_state[0] for row in rows]
        got = made(made.pack(np.concatenate(rows), np.array([len(row) for row in rows])))
    torch.testing.assert_close(got, torch.cat(want), atol=1e-5, rtol=1e-5)
    assert made.runs == runs


def test_a_window_that_the_attention_is_not_told_of_shows_in_half_precision(make_model: MakeModel) -> None:
    folder = make_model("qwen2_moe", max_position_embeddings=2048, **QWEN2, **EXPERTS, sliding_window=400)
    assert checked(folder, 2048, dtype="bfloat16").runs == "padded"


def test_a_window_that_the_config_only_computes_is_known(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_reach", lambda *given: None)
    folder = make_model("modernbert", local_attention=128)
    assert checked(folder, 100).runs == "padded"


@pytest.mark.parametrize("max_length", [300, 515, 2048])
def test_no_text_of_the_check_is_longer_than_texts_may_be(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, max_length: int
) -> None:
    made = encoder.load(make_model("mistral", **GQA, sliding_window=510, max_position_embeddings=2048), CPU)
    seen: list[int] = []
    pack = made.pack
    monkeypatch.setattr(
        made, "pack", lambda ids, lengths, *more: seen.extend(lengths) or pack(ids, lengths, *more)
    )
    selfcheck.choose(made, max_length)
    assert max(seen) == {300: 64, 515: 515, 2048: 519}[max_length]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        (
            "reformer",
            {"axial_pos_embds": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16],
             "attn_layers": ["local", "local"], "attention_head_size": 8, "feed_forward_size": 48,
             "local_attn_chunk_length": 16, "is_decoder": False, "max_position_embeddings": 256},
        ),
        (
            "deepseek_v32",
            {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
             "head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
             "moe_intermediate_size": 16, "first_k_dense_replace": 3, "num_key_value_heads": 4, "index_topk": 32,
             "index_n_heads": 2, "index_head_dim": 8},
        ),
    ],
)  # fmt: skip
def test_a_family_that_depends_on_a_longer_neighbour_does_not_start(
    make_model: MakeModel, family: str, config: dict[str, Any]
) -> None:
    made = encoder.load(make_model(family, **config), CPU)
    with pytest.raises(EngineStartFailed, match="does not give the same numbers in a batch as alone"):
        selfcheck.choose(made, max_length=128)


def test_a_layer_that_sees_how_long_the_batch_is_does_not_start(make_model: MakeModel) -> None:
    made = encoder.load(make_model("mpnet"), CPU)
    made.model.embeddings.register_forward_hook(
        lambda module, args, out: out * (1 + 0.5 * (out.shape[1] > 50))
    )
    with pytest.raises(EngineStartFailed, match="in a batch as alone"):
        selfcheck.choose(made, max_length=128)


@pytest.mark.parametrize(("packed", "runs"), [(True, "packed"), (False, "padded")])
def test_packing_can_be_switched_off_and_shows(make_model: MakeModel, packed: bool, runs: str) -> None:
    settings = EngineConfig(device="cpu", packed=packed)
    model = ModelConfig(source=str(make_model("bert")), name="m", dtype="float32")
    spec = specs.of_engine(Config(engine=settings), (specs.of_model(model),))
    made = loader._make(spec.models[0], spec)
    made.load(CPU)
    assert isinstance(made, TextModel)
    assert facts(made).runs == runs
    assert made.padded is not packed
