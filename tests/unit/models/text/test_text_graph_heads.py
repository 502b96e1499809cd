"""Every head, token types and the tanh GELU on a GPU: as graphs they give what the direct forward gives. Needs CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import Row, bge_m3, facts, pairs, rows_of, types_of
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers import AutoModelForTokenClassification as AutoModelForTokens

from gpu_server.engine.runner import Runner
from gpu_server.models.text.choice import choose
from gpu_server.models.text.model import TextModel
from gpu_server.wire import Tensor, Tensors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")
MAX_TOKENS, MAX_ITEMS = 1024, 400
MIXES = [[1], [16], [90], [1] * 400, [90] * 11 + [34], [7, 1, 89, 30, 16, 2]]
MakeModel = Callable[..., Path]


def started(folder: Path, **options: Any) -> tuple[TextModel, Runner]:
    model = choose(str(folder), dtype="float16", compiled=False, **options)
    model.load(GPU)
    model.max_batch_tokens, model.max_batch_items = MAX_TOKENS, MAX_ITEMS
    runner = Runner(model, GPU)
    model.warm_up(runner.run)
    return model, runner


def answer(runner: Runner, rows: list[Row], **params: Any) -> Tensors:
    given = {"input_ids": Tensor.from_rows(rows)}
    if "token_type_ids" in runner.model.inputs:
        given["token_type_ids"] = Tensor.from_rows(types_of(rows))
    outputs, errors = runner.run(given, params)
    assert errors == []
    return outputs


def flat(outputs: Tensors) -> dict[str, Any]:
    """Each output's numbers in one array; sparse vectors as dense ones, for their least values may come and go."""
    if "sparse_indices" in outputs:
        dense = np.zeros((outputs["sparse_indices"].items, 96), np.float32)
        pairs = (outputs["sparse_indices"].rows(), outputs["sparse_values"].rows())
        for i, (indices, values) in enumerate(zip(*pairs, strict=True)):
            dense[i, indices] = values
        outputs = {**outputs, "sparse_values": Tensor.from_numpy(dense)}
        del outputs["sparse_indices"]
    return {name: np.concatenate([row.ravel() for row in tensor.rows()]) for name, tensor in outputs.items()}


Make = Callable[[MakeModel], Path]
HEADS: dict[str, tuple[Make, dict[str, Any], dict[str, Any]]] = {
    "pairs": (lambda make: pairs(make, "bert", num_labels=1), {}, {}),
    "mean": (lambda make: make("modernbert", auto=AutoModelForSequenceClassification, num_labels=3,
                               classifier_pooling="mean"), {}, {}),
    "last": (lambda make: make("qwen3", auto=AutoModelForSequenceClassification, num_labels=1), {}, {}),
    "splade": (lambda make: make("bert", auto=AutoModelForMaskedLM), {"pooling": "splade"}, {}),
    "tokens": (lambda make: make("bert", auto=AutoModelForTokens, num_labels=5), {}, {}),
    "bge-m3": (bge_m3, {}, {"output": "all"}),
    "token embeddings": (lambda make: make("roberta", pooling="mean"), {}, {"output": "token_embeddings"}),
    "tanh gelu": (lambda make: make("bert", pooling="mean", hidden_act="gelu_new"), {}, {}),
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_graphs_of_every_head_give_what_the_direct_forward_gives(make_model: MakeModel, head: str) -> None:
    make, options, params = HEADS[head]
    folder = make(make_model)
    model, graphed = started(folder, **options)
    assert facts(model).runs.endswith("graphs")
    assert ("token_type_ids" in model.inputs) == (head == "pairs")
    _, direct = started(folder, graphs=False, **options)
    for seed, lengths in enumerate(MIXES):
        rows = rows_of(lengths, seed=seed)
        got, want = (flat(answer(runner, rows, **params)) for runner in (graphed, direct))
        assert got.keys() == want.keys()
        for name, values in want.items():
            error = float(np.linalg.norm(got[name] - values)) / max(1e-3, float(np.linalg.norm(values)))
            assert error < 1e-2, (name, lengths[:3], error)


def test_token_types_reach_the_graph(make_model: MakeModel) -> None:
    _, runner = started(pairs(make_model, "bert", num_labels=1))
    row = rows_of([30])[0]
    scores = [
        runner.run({"input_ids": Tensor.from_rows([row]), "token_type_ids": Tensor.from_rows([types])})[0][
            "logits"
        ]
        for types in (np.zeros(30, np.int32), np.ones(30, np.int32))
    ]
    assert scores[0].to_numpy().item() != scores[1].to_numpy().item()


@pytest.mark.parametrize(
    "family",
    [
        "bert",
        "roberta",
        "distilbert",
        "modernbert",
        "nomic_bert",
        "qwen3",
        "mistral",
        "gemma3_text",
        "albert",
    ],
)
@torch.inference_mode()
def test_graphs_are_as_near_to_float32_as_transformers_own_half(make_model: MakeModel, family: str) -> None:
    folder = make_model(family, pooling="mean")
    rows = [row for seed in range(8) for row in rows_of([5, 40, 3, 17, 64, 9, 90, 28], seed=seed)]

    def stock(dtype: torch.dtype) -> Any:
        model = AutoModel.from_pretrained(folder, dtype=dtype).to(GPU).eval()
        vectors = [
            model(torch.from_numpy(row)[None].long().to(GPU)).last_hidden_state[0].float().mean(0)
            for row in rows
        ]
        return torch.stack(vectors).cpu().numpy()

    want, half = stock(torch.float32), stock(torch.float16)
    _, runner = started(folder)
    got = answer(runner, rows)["embedding"].to_numpy()
    ours, theirs = (np.linalg.norm(vectors - want) / np.linalg.norm(want) for vectors in (got, half))
    print(f"{family}: error to float32 {ours:.2e}, Transformers' own float16 {theirs:.2e}")
    assert ours <= 1.1 * theirs
