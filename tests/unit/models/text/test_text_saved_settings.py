"""Settings that sentence-transformers saves, against sentence-transformers; what cannot be honoured is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads import facts, loaded, run
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM

from gpu_server.errors import ConfigError
from gpu_server.models.text import transformer_settings
from gpu_server.models.text.checkpoint import read
from gpu_server.models.text.model import TextModel
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire import Tensors

MakeModel = Callable[..., Path]
LONG = " ".join(f"w{i % 80}" for i in range(160))
TEXTS = ["w1 w2 w3", LONG, "w9"]
NAMES = [
    "sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json",
    "sentence_camembert_config.json", "sentence_albert_config.json", "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
]  # fmt: skip
OURS = "config_sentence_transformers.json"


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**value, **changes}))


def saved(make_model: MakeModel, **settings: Any) -> Path:
    """A folder with the settings of the Transformer in the newest of its files."""
    folder = make_model("bert", pooling="mean")
    (folder / NAMES[0]).write_text(json.dumps(settings))
    return folder


def forward(output: Any = "last_hidden_state") -> dict[str, Any]:
    """What sentence-transformers 6 saves of which output of a model it takes."""
    return {"text": {"method": "forward", "method_output_name": output}}


def answer(model: TextModel, texts: list[str], **params: Any) -> Tensors:
    text = facts(model).text
    assert text is not None
    rows = TextTokenizer(model.tokenizer_json(), text).encode(texts)
    return run(model, [np.array(row, np.int32) for row in rows], **params)


def assert_equal_to_theirs(folder: Path) -> SentenceTransformer:
    theirs = SentenceTransformer(str(folder), device="cpu")
    got: Any = answer(loaded(folder, dtype="float32"), TEXTS)["embedding"].to_numpy()
    np.testing.assert_allclose(got, theirs.encode(TEXTS, batch_size=1), atol=1e-5, rtol=1e-5)
    return theirs


def test_truncate_dim_is_the_default_of_dimensions(make_model: MakeModel) -> None:
    folder = saved(make_model)
    edit(folder / OURS, truncate_dim=16)
    assert_equal_to_theirs(folder)
    model = loaded(folder, dtype="float32")
    assert (model.params["dimensions"], facts(model).dimensions) == (16, 32)
    whole = answer(model, TEXTS, dimensions=0)["embedding"].to_numpy()
    assert whole.shape == (3, 32)
    for dimensions in (8, 16, 24):
        got = answer(model, TEXTS, dimensions=dimensions)["embedding"].to_numpy()
        np.testing.assert_array_equal(got, whole[:, :dimensions])


def test_more_dimensions_than_there_are_is_all_of_them(make_model: MakeModel) -> None:
    folder = saved(make_model)
    edit(folder / OURS, truncate_dim=64)
    assert_equal_to_theirs(folder)


@pytest.mark.parametrize("count", [8, 500])
def test_max_active_dims_keeps_the_largest(make_model: MakeModel, tmp_path: Path, count: int) -> None:
    made = SparseEncoder(
        str(make_model("bert", auto=AutoModelForMaskedLM)), device="cpu", max_active_dims=count
    )
    folder = tmp_path / "saved"
    made.save_pretrained(str(folder))
    want = made.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    assert (want != 0).sum(1).max() == 8 or count == 500
    outputs = answer(loaded(folder, dtype="float32"), TEXTS)
    got = np.zeros_like(want)
    pairs = zip(outputs["sparse_indices"].rows(), outputs["sparse_values"].rows(), strict=True)
    for i, (indices, values) in enumerate(pairs):
        got[i, indices] = values
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_may_be_under_an_old_name(make_model: MakeModel, name: str) -> None:
    folder = saved(make_model, max_seq_length=20)
    (folder / NAMES[0]).rename(folder / name)
    assert assert_equal_to_theirs(folder).max_seq_length == read(folder).max_length == 20


def test_the_newest_name_that_says_anything_counts(make_model: MakeModel) -> None:
    folder = saved(make_model)
    edit(folder / NAMES[3], max_seq_length=30)
    edit(folder / NAMES[5], max_seq_length=40)
    assert assert_equal_to_theirs(folder).max_seq_length == read(folder).max_length == 30


@pytest.mark.parametrize(
    "settings",
    [
        {"processor_kwargs": {"model_max_length": 20}},
        {"tokenizer_args": {"model_max_length": 20}},
        {"tokenizer_args": {"model_max_length": 20}, "max_seq_length": 40},
        {"tokenizer_args": {"model_max_length": 20}, "processor_kwargs": {"model_max_length": 40}},
        {"processing_kwargs": {"text": {"max_length": 20}}, "max_seq_length": 40},
        {"processing_kwargs": {"text": {"max_length": 20}}, "processor_kwargs": {"model_max_length": 10}},
        {"max_seq_length": 20, "model_args": {"attn_implementation": "eager"}, "config_args": {}},
        {"max_seq_length": 20, "processor_kwargs": {"padding_side": "left"}, "processing_kwargs": {"common": {}}},
    ],
)  # fmt: skip
def test_lengths_in_arguments(make_model: MakeModel, settings: dict[str, Any]) -> None:
    folder = saved(make_model, **settings)
    assert_equal_to_theirs(folder)
    assert read(folder).max_length == 20


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"processor_kwargs": {"do_lower_case": True}}, "do_lower_case in processor_kwargs"),
        ({"tokenizer_args": {"do_lower_case": True}}, "do_lower_case in processor_kwargs"),
        ({"config_args": {"is_causal": False}}, "is_causal in config_kwargs"),
        ({"model_kwargs": {"subfolder": "x"}}, "subfolder in model_kwargs"),
        ({"processing_kwargs": {"text": {"stride": 4}}}, "stride in text"),
        ({"processing_kwargs": {"common": {"x": 1}}}, "common in processing_kwargs"),
        ({"processing_kwargs": ["text"]}, "processing_kwargs must be an object"),
        ({"processor_kwargs": {"truncation_side": "middle"}}, "not 'middle'"),
        ({"modality_config": forward(["hidden_states", -2])}, "modality_config must be last_hidden_state"),
        ({"modality_config": {"text": {"method": "get_text_features", "method_output_name": "last_hidden_state"}}},
         "modality_config must be last_hidden_state of forward"),
        ({"modality_config": {"image": forward()["text"]}}, "modality_config must be last_hidden_state"),
        ({"modality_config": {**forward(), "message": forward()["text"]}}, "message in modality_config"),
        ({"modality_config": ["text"]}, "modality_config must be an object"),
        ({"modality_config": {"text": "forward"}}, "text must be an object"),
        ({"module_output_name": "sentence_embedding"}, "module_output_name must be token_embeddings"),
        ({"transformer_task": "sequence-classification", "modality_config": forward()}, "must be logits of forward"),
        ({"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path is not supported"),
        ({"query_length": 32}, "query_length is not supported"),
        ({"document_length": 32}, "document_length is not supported"),
        ({"query_expansion": {"strategy": "min", "length": 32}}, "query_expansion is not supported"),
        ({"max_seq_length": "100"}, "max_seq_length must be a whole number, not '100'"),
        ({"max_seq_length": 1.5}, "max_seq_length must be a whole number"),
        ({"max_seq_length": True}, "max_seq_length must be a whole number"),
    ],
)  # fmt: skip
def test_other_arguments_are_refused(make_model: MakeModel, settings: dict[str, Any], named: str) -> None:
    folder = saved(make_model, **settings)
    with pytest.raises(ConfigError, match=named):
        read(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"modality_config": forward(), "module_output_name": "token_embeddings"},
        {"modality_config": forward(["last_hidden_state"]), "module_output_name": "token_embeddings"},
        {"modality_config": {**forward(), "image": forward()["text"]}, "module_output_name": "token_embeddings"},
        {"transformer_task": "feature-extraction", "unpad_inputs": False, "query_length": None},
        {"max_seq_length": 100, "do_lower_case": False, "cache_dir": None, "query_expansion": None},
    ],
)  # fmt: skip
def test_what_every_version_saves_of_an_ordinary_model_is_served(
    make_model: MakeModel, settings: dict[str, Any]
) -> None:
    assert_equal_to_theirs(saved(make_model, **settings))


@pytest.mark.parametrize("task", ["feature-extraction", "fill-mask", "sequence-classification"])
def test_what_is_saved_of_each_task_is_read(make_model: MakeModel, tmp_path: Path, task: Any) -> None:
    folder = make_model("bert", auto=AutoModelForMaskedLM)
    made = Transformer(str(folder), transformer_task=task)
    made.save(str(tmp_path / "saved"))
    assert "modality_config" in json.loads((tmp_path / "saved" / NAMES[0]).read_text())
    assert transformer_settings.read(tmp_path / "saved").task == task


@pytest.mark.parametrize("changes", [{"truncate_dim": 0}, {"truncate_dim": "16"}, {"max_active_dims": -1}])
def test_sizes_that_are_none_are_refused(make_model: MakeModel, changes: dict[str, Any]) -> None:
    folder = saved(make_model)
    edit(folder / OURS, **changes)
    with pytest.raises(ConfigError, match=next(iter(changes))):
        read(folder)


def cut_left(folder: Path, place: str) -> None:
    if place == "tokenizer.json":
        tokenizer = Tokenizer.from_file(str(folder / place))
        tokenizer.enable_truncation(20, direction="left")
        tokenizer.save(str(folder / place))
    elif place == "tokenizer_config.json":
        edit(folder / place, truncation_side="left")
    else:
        edit(folder / place, processor_kwargs={"truncation_side": "left"})


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json", NAMES[0]])
def test_the_side_that_is_cut(make_model: MakeModel, place: str) -> None:
    folder = saved(make_model)
    assert read(folder).truncation_direction == "right"
    cut_left(folder, place)
    theirs = assert_equal_to_theirs(folder)
    assert theirs.tokenizer.truncation_side == read(folder).truncation_direction == "left"


def test_the_tokenizer_config_says_it_over_the_tokenizer(make_model: MakeModel) -> None:
    folder = saved(make_model)
    cut_left(folder, "tokenizer.json")
    edit(folder / "tokenizer_config.json", truncation_side="right")
    assert (
        assert_equal_to_theirs(folder).tokenizer.truncation_side
        == read(folder).truncation_direction
        == "right"
    )
