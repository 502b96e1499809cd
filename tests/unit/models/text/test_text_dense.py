"""Dense modules and token embeddings against sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heads import facts, loaded, rows_of, run
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize

from gpu_server.errors import ConfigError, InvalidRequest, ModelFolderMissing

MakeModel = Callable[..., Path]
LAYERS: dict[str, Callable[[], list[torch.nn.Module]]] = {
    "tanh": lambda: [Dense(32, 16)],
    "identity": lambda: [Dense(32, 48, activation_function=torch.nn.Identity()), Dense(48, 8, bias=False)],
    "residual": lambda: [Dense(32, 32, use_residual=True), Dense(32, 16, use_residual=True), Normalize()],
}


def saved(make_model: MakeModel, folder: Path, layers: str, **pooling: Any) -> Path:
    """A folder that sentence-transformers saved."""
    torch.manual_seed(0)
    stock = SentenceTransformer(str(make_model("bert", **{"pooling": "mean", **pooling})), device="cpu")
    made = SentenceTransformer(modules=[*stock, *LAYERS[layers]()], device="cpu")
    made.save_pretrained(str(folder / "saved"))
    return folder / "saved"


@torch.inference_mode()
def theirs(folder: Path, rows: list[Any], name: str) -> list[Any]:
    model = SentenceTransformer(str(folder), device="cpu")
    ids = [torch.from_numpy(row)[None].long() for row in rows]
    return [model({"input_ids": i, "attention_mask": torch.ones_like(i)})[name][0].numpy() for i in ids]


@pytest.mark.parametrize("layers", LAYERS)
def test_dense_modules(make_model: MakeModel, tmp_path: Path, layers: str) -> None:
    folder = saved(make_model, tmp_path, layers)
    model = loaded(folder, dtype="float32")
    rows = rows_of()
    want = np.stack(theirs(folder, rows, "sentence_embedding"))
    got = run(model, rows)["embedding"].to_numpy()
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    assert facts(model).dimensions == want.shape[1]
    assert run(model, rows, dimensions=5)["embedding"].to_numpy().shape == (len(rows), 5)


def test_weights_saved_by_torch(make_model: MakeModel, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = saved(make_model, tmp_path, "tanh")
    (layer,) = folder.glob("*_Dense")
    torch.save(load_file(layer / "model.safetensors"), layer / "pytorch_model.bin")
    want = run(loaded(folder), rows_of())["embedding"].to_numpy()
    (layer / "model.safetensors").unlink()
    np.testing.assert_array_equal(run(loaded(folder), rows_of())["embedding"].to_numpy(), want)
    (layer / "pytorch_model.bin").unlink()
    with pytest.raises(ModelFolderMissing, match=r"_Dense.model\.safetensors"):
        loaded(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "os.system"}, "activation_function os.system"),
        ({"activation_function": "torch.nn.functional.relu"}, "activation_function torch.nn.functional.relu"),
        ({"module_input_name": "token_embeddings"}, "module_input_name"),
        ({"out_features": 17}, "not a Dense module"),
        ({"in_features": 33}, "not a Dense module"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    make_model: MakeModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = saved(make_model, tmp_path, "tanh")
    (path,) = folder.glob("*_Dense/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ConfigError, match=message):
        loaded(folder)


def test_a_module_of_another_size_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    folder = saved(make_model, tmp_path, "tanh")
    (path,) = folder.glob("*_Pooling/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "pooling_mode": ["mean", "cls"]}))
    with pytest.raises(ConfigError, match="takes 32 numbers, not 64"):
        loaded(folder)


@pytest.mark.parametrize("family", ["bert", "mpnet", "qwen3"])
def test_token_embeddings(make_model: MakeModel, family: str) -> None:
    folder = make_model(family, pooling="mean", normalize=True)
    model = loaded(folder, dtype="float32")
    rows = rows_of()
    got = run(model, rows, output="token_embeddings")["token_embeddings"]
    for mixed, alone in zip(got.rows(), theirs(folder, rows, "token_embeddings"), strict=True):
        np.testing.assert_allclose(mixed, alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidRequest, match="output must be one of embedding, token_embeddings"):
        run(model, rows, output="sparse")
