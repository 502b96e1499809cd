"""Models that would change with the texts they have seen: the same numbers as Transformers', and nothing looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import CPU, loaded, rows_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel

from gpu_server.errors import ConfigError
from gpu_server.models.text import encoder, selfcheck, steady
from gpu_server.models.text.encoder import Encoder

MakeModel = Callable[..., Path]
GQA: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}
LONGROPE = {
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 130,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 130,
        "short_factor": [1.0, 1.5, 2.0, 1.2], "long_factor": [4.0, 3.0, 2.0, 5.0],
    },
}  # fmt: skip
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {**GQA, **DYNAMIC}), ("gte", DYNAMIC), ("nomic_bert", DYNAMIC), ("phi3", LONGROPE),
]  # fmt: skip


class Reads(TorchDispatchMode):
    """The operators that bring a number from the device to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "item", "nonzero"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def settled(folder: Path, max_length: int = 130) -> Encoder:
    made = encoder.load(folder, CPU)
    steady.settle(made.model, max_length, folder)
    selfcheck.choose(made, max_length)
    return made


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_rotary_positions_are_transformers_and_nothing_is_read(
    make_model: MakeModel, family: str, config: dict[str, Any]
) -> None:
    folder = make_model(family, **config)
    rows = rows_of([3, 130, 1, 64])
    made = settled(folder)
    batch = made.pack(np.concatenate(rows), np.array([len(row) for row in rows]))
    with torch.inference_mode(), Reads() as reads:
        got = made(batch)
    stock = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        want = [stock(input_ids=torch.from_numpy(row)[None].long()).last_hidden_state[0] for row in rows]
    torch.testing.assert_close(got, torch.cat(want), atol=1e-5, rtol=1e-5)
    assert made.runs == "packed"
    assert reads.seen == []
    rotary = next(m for m in made.model.modules() if hasattr(m, "original_max_seq_len"))
    assert rotary.rope_type == "default"


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_texts_of_which_one_would_turn_the_others_are_refused(
    make_model: MakeModel, family: str, config: dict[str, Any]
) -> None:
    folder = make_model(family, **config)
    made = encoder.load(folder, CPU)
    words = rf"^{re.escape(str(folder))}: .* turns all texts .* set max_length to 130 or less$"
    with pytest.raises(ConfigError, match=words):
        steady.settle(made.model, 131, folder)


def test_kinds_are_told_apart_where_layers_differ(make_model: MakeModel) -> None:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    }
    made = settled(make_model("gemma3_text", rope_parameters=rope))
    rotary = next(m for m in made.model.modules() if hasattr(m, "original_max_seq_len"))
    assert rotary.rope_type == {"sliding_attention": "default", "full_attention": "default"}


def test_kinds_that_never_change_are_left(make_model: MakeModel) -> None:
    made = settled(
        make_model("llama", **GQA, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    )
    rotary = next(m for m in made.model.modules() if hasattr(m, "original_max_seq_len"))
    assert rotary.rope_type == "linear"


def test_a_model_settles_before_it_is_checked(make_model: MakeModel) -> None:
    model = loaded(make_model("llama", **GQA, **DYNAMIC), dtype="float32")
    rotary = next(m for m in model.encoder_model.modules() if hasattr(m, "original_max_seq_len"))
    assert rotary.rope_type == "default"


def test_big_bird_attends_to_all_from_the_first_text_on(make_model: MakeModel) -> None:
    folder = make_model("big_bird", block_size=4, num_random_blocks=1)
    made = encoder.load(folder, CPU)
    steady.settle(made.model, 130, folder)
    row = rows_of([100])[0]
    stock = AutoModel.from_pretrained(folder, attention_type="original_full").eval()
    with torch.inference_mode():
        want = stock(input_ids=torch.from_numpy(row)[None].long()).last_hidden_state[0]
        got = made(made.pack(row, np.array([100])))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
