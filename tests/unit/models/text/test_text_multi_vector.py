"""BGE-M3's three kinds of vectors against its published arithmetic, on hidden states of Transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from heads import Row, facts, loaded, rows_of, run
from safetensors.torch import save_file
from transformers import AutoModel

from gpu_server.errors import ConfigError, InvalidRequest
from gpu_server.wire import Tensors

MakeModel = Callable[..., Path]
SPECIAL = (1, 2)
FAMILY = "xlm-roberta"
ROWS = [np.array([1, *row, 2], np.int32) for row in [*rows_of([5, 40, 1]), [7, 7, 9, 7]]]


@pytest.fixture(params=["pt", "safetensors"])
def folder(request: pytest.FixtureRequest, make_model: MakeModel) -> Path:
    made = make_model(FAMILY, pooling="cls", normalize=True, pad_token_id=0)
    tokenizer = (made / "tokenizer.json").read_text()
    # As WordLevel saves it, no token is special; the real file lists them.
    listed = ", ".join(
        f'{{"id": {i}, "content": "{name}", "special": true, "single_word": false, "lstrip": false, '
        f'"rstrip": false, "normalized": false}}'
        for i, name in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    )
    (made / "tokenizer.json").write_text(
        tokenizer.replace('"added_tokens": []', f'"added_tokens": [{listed}]')
    )
    torch.manual_seed(1)
    for part, size in (("sparse", 1), ("colbert", 16)):
        weights = {"weight": torch.randn(size, 32), "bias": torch.randn(size)}
        if request.param == "pt":
            torch.save(weights, made / f"{part}_linear.pt")
        else:
            save_file(weights, made / f"{part}_linear.safetensors")
        torch.save(weights, made / f"{part}.wanted")
    return made


@torch.inference_mode()
def hidden_of(folder: Path, row: Row) -> torch.Tensor:
    model = AutoModel.from_pretrained(folder).eval()
    return model(input_ids=torch.from_numpy(row)[None].long()).last_hidden_state[0]


def linear(folder: Path, part: str, hidden: torch.Tensor) -> torch.Tensor:
    weights = torch.load(folder / f"{part}.wanted", weights_only=True)
    return torch.nn.functional.linear(hidden, weights["weight"], weights["bias"])


def check_sparse(folder: Path, outputs: Tensors) -> None:
    pairs = zip(outputs["sparse_indices"].rows(), outputs["sparse_values"].rows(), strict=True)
    for row, (indices, values) in zip(ROWS, pairs, strict=True):
        want: dict[int, float] = {}
        for token, weight in zip(row, linear(folder, "sparse", hidden_of(folder, row))[:, 0], strict=True):
            if token not in SPECIAL and weight > 0:
                want[int(token)] = max(want.get(int(token), 0.0), float(weight))
        assert indices.tolist() == sorted(want)
        np.testing.assert_allclose(values, [want[i] for i in sorted(want)], atol=1e-5, rtol=1e-5)


def check_colbert(folder: Path, outputs: Tensors) -> None:
    for row, got in zip(ROWS, outputs["colbert"].rows(), strict=True):
        want = linear(folder, "colbert", hidden_of(folder, row)[1:])
        unit = torch.nn.functional.normalize(want, dim=-1).numpy()
        np.testing.assert_allclose(got, unit, atol=1e-5, rtol=1e-5)


def test_all_three_in_one_pass(folder: Path) -> None:
    model = loaded(folder, dtype="float32")
    outputs = run(model, ROWS, output="all")
    assert sorted(outputs) == ["colbert", "embedding", "sparse_indices", "sparse_values"]
    check_sparse(folder, outputs)
    check_colbert(folder, outputs)
    want = torch.stack([hidden_of(folder, row)[0] for row in ROWS])
    unit = torch.nn.functional.normalize(want, dim=-1).numpy()
    np.testing.assert_allclose(outputs["embedding"].to_numpy(), unit, atol=1e-5, rtol=1e-5)


def test_each_by_itself(folder: Path) -> None:
    model = loaded(folder, dtype="float32")
    assert facts(model).outputs == ("embedding", "token_embeddings", "sparse", "colbert", "all")
    check_sparse(folder, run(model, ROWS, output="sparse"))
    check_colbert(folder, run(model, ROWS, output="colbert"))
    assert list(run(model, ROWS)) == ["embedding"]
    with pytest.raises(InvalidRequest, match="output must be one of"):
        run(model, ROWS, output="everything")


def test_a_file_that_is_no_layer_is_named(folder: Path) -> None:
    for path in folder.glob("sparse_linear.*"):
        path.unlink()
    torch.save({"scale": torch.ones(3)}, folder / "sparse_linear.pt")
    with pytest.raises(ConfigError, match=r"sparse_linear\.pt"):
        loaded(folder)
