"""What is read from a model folder, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from gpu_server.errors import ConfigError, ModelFolderMissing
from gpu_server.models.text.checkpoint import read, task_of


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**value, **changes}))


def test_a_sentence_transformers_folder(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert", pooling="cls", normalize=True)
    edit(
        folder / "config_sentence_transformers.json",
        prompts={"query": "query: "},
        default_prompt_name="query",
    )
    facts = read(folder)
    assert (facts.pooling, facts.normalize, facts.max_length) == ("cls", True, 100)
    assert (facts.prompts, facts.default_prompt) == ({"query": "query: ", "document": ""}, "query")
    assert facts.tokenizer_json == (folder / "tokenizer.json").read_bytes()
    assert (facts.stored_dtype, facts.folder) == ("float32", folder)


def test_a_plain_folder_is_mean_pooled_and_not_normalized(make_model: Callable[..., Path]) -> None:
    facts = read(make_model("bert"))
    assert (facts.pooling, facts.normalize, facts.default_prompt) == ("mean", False, "")


@pytest.mark.parametrize(
    ("changes", "pooling"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
        ({"architectures": ["Qwen3Model"]}, "mean"),
    ],
)
def test_default_pooling_is_that_of_sentence_transformers(
    make_model: Callable[..., Path], changes: dict[str, Any], pooling: str
) -> None:
    folder = make_model("qwen3")
    edit(folder / "config.json", **changes)
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert read(folder).pooling == pooling == theirs[1].pooling_mode


def test_pooling_config_of_newer_sentence_transformers(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert", pooling="mean")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    assert read(folder).pooling == "lasttoken"


@pytest.mark.parametrize(
    ("family", "saved", "tokenizer", "positions", "want"),
    [
        ("bert", None, None, 130, 130),
        ("bert", 64, 100, 130, 64),
        ("bert", 100, 64, 130, 100),
        ("bert", None, 64, 130, 64),
        ("bert", 512, None, 130, 130),
        ("bert", None, int(1e30), 130, 130),
        ("nomic_bert", None, None, 0, 512),
    ],
)
def test_max_length(
    make_model: Callable[..., Path],
    family: str,
    saved: int | None,
    tokenizer: int | None,
    positions: int,
    want: int,
) -> None:
    folder = make_model(family)
    edit(folder / "config.json", max_position_embeddings=positions)
    edit(folder / "sentence_bert_config.json", max_seq_length=saved)
    if tokenizer:
        edit(folder / "tokenizer_config.json", model_max_length=tokenizer)
    assert read(folder).max_length == want


def test_the_transformer_may_be_in_a_folder_of_its_own(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_model("bert", pooling="mean")
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        (folder / name).rename(inner / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    facts = read(folder)
    assert (facts.folder, facts.max_length, facts.pooling) == (inner, 100, "mean")


def test_lower_casing_goes_into_the_tokenizer(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert", pooling="mean")
    assert Tokenizer.from_str(read(folder).tokenizer_json.decode()).encode("W7").ids == [1, 3, 2]
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    assert Tokenizer.from_str(read(folder).tokenizer_json.decode()).encode("W7").ids == [1, 11, 2]


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "1_Pooling/config.json"])
def test_a_missing_file_is_named(make_model: Callable[..., Path], name: str) -> None:
    folder = make_model("bert", pooling="mean")
    (folder / name).unlink()
    with pytest.raises(ModelFolderMissing, match=name):
        read(folder)


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "median"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused(
    make_model: Callable[..., Path], file: str, changes: dict[str, Any], named: str
) -> None:
    folder = make_model("bert", pooling="mean")
    edit(folder / file, **changes)
    with pytest.raises(ConfigError, match=named):
        read(folder)


@pytest.mark.parametrize(
    "kinds",
    [
        ["sentence_transformers.models.Transformer", "sentence_transformers.models.Dense",
         "sentence_transformers.models.Pooling"],
        ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling",
         "sentence_transformers.models.Normalize", "sentence_transformers.models.Dense"],
        ["sentence_transformers.models.Router"],
        ["sentence_transformers.models.Transformer", "sentence_transformers.cross_encoder.modules.LogitScore"],
        ["sentence_transformers.models.WordEmbeddings", "sentence_transformers.models.Pooling"],
        ["custom_st.Transformer", "sentence_transformers.models.Pooling"],
        ["sentence_transformers.models.Pooling", "sentence_transformers.models.Transformer"],
    ],
)  # fmt: skip
def test_other_modules_are_refused(make_model: Callable[..., Path], kinds: list[str]) -> None:
    folder = make_model("bert", pooling="mean")
    (folder / "modules.json").write_text(
        json.dumps([{"path": str(i), "type": k} for i, k in enumerate(kinds)])
    )
    with pytest.raises(ConfigError, match=r"modules\.json"):
        read(folder)


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "{"), ("config.json", "[]"), ("modules.json", "{}")]
)
def test_a_broken_file_is_named(make_model: Callable[..., Path], name: str, text: str) -> None:
    folder = make_model("bert")
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        read(folder)


@pytest.mark.parametrize("after", [["Dropout"], ["Dropout", "Normalize"], ["Dropout", "Dense", "Dropout"]])
def test_dropout_does_nothing(make_model: Callable[..., Path], after: list[str]) -> None:
    folder = make_model("bert", pooling="mean")
    listed = json.loads((folder / "modules.json").read_text())
    kinds = [f"sentence_transformers.models.{kind}" for kind in after]
    listed += [{"path": f"{i + 2}", "type": kind} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(listed))
    facts = read(folder)
    assert facts.normalize == ("Normalize" in after)
    assert facts.dense == ((folder / "3",) if "Dense" in after else ())


@pytest.mark.parametrize(
    "config",
    [{"module_input_name": "token_embeddings"}, {"module_output_name": "other"}],
)
def test_what_is_made_of_unit_length_is_the_vector(
    make_model: Callable[..., Path], config: dict[str, str]
) -> None:
    folder = make_model("bert", pooling="mean", normalize=True)
    place = folder / "2_Normalize" / "config.json"
    edit(place, module_input_name="sentence_embedding", module_output_name=None)
    assert read(folder).normalize
    edit(place, **config)
    with pytest.raises(ConfigError, match=f"{place}: {next(iter(config))} must be sentence_embedding"):
        read(folder)


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_refused(make_model: Callable[..., Path], whole: bool) -> None:
    folder = make_model("bert")
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="some/model")
    if not whole:
        (folder / "config.json").unlink()
    for reads in (read, task_of):
        with pytest.raises(ConfigError, match="merge it into its model first"):
            reads(folder)


@pytest.mark.parametrize(
    ("code", "warned"),
    [
        ({"AutoModel": "modeling.Bidirectional", "AutoConfig": "modeling.Config"}, 1),
        ({"AutoModelForMaskedLM": "some/repo--modeling.Bidirectional"}, 1),
        ({"AutoConfig": "modeling.Config"}, 0),
        (None, 0),
    ],
)
def test_code_that_is_not_run_is_said(
    make_model: Callable[..., Path], caplog: pytest.LogCaptureFixture, code: Any, warned: int
) -> None:
    folder = make_model("bert")
    edit(folder / "config.json", auto_map=code)
    task_of(folder)
    read(folder)
    assert [record.message.count("is not run") for record in caplog.records] == [1] * warned


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize(("labels", "missing"), [({"1": "a", "2": "b"}, 0), ({"0": "a", "2": "b"}, 1)])
def test_labels_are_counted_from_0(
    make_model: Callable[..., Path], head: str, labels: dict[str, str], missing: int
) -> None:
    folder = make_model("bert")
    edit(folder / "config.json", id2label=labels)
    read(folder)
    edit(folder / "config.json", architectures=[f"BertFor{head}"])
    with pytest.raises(ConfigError, match=rf"id2label must count the labels from 0, and has no {missing}"):
        read(folder)
    edit(folder / "config.json", id2label={"1": "b", "0": "a"})
    read(folder)


def test_importable_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys, gpu_server.models.text.checkpoint, gpu_server.models.text.source; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def reads_as(folder: Path, *architectures: str) -> str:
    edit(folder / "config.json", architectures=list(architectures))
    return task_of(folder)


def test_tasks_of_plain_folders(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    assert reads_as(folder, "BertModel") == "embedding"
    assert reads_as(folder, "BertForMaskedLM") == "embedding"
    assert reads_as(folder, "BertForSequenceClassification") == "scores"
    assert reads_as(folder, "BertForTokenClassification") == "token_classifier"
    assert reads_as(folder) == "embedding"
    assert task_of(folder, "splade") == "sparse"


def test_tasks_of_saved_modules(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert", pooling="mean")
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])
    assert task_of(folder) == "embedding"
    (folder / "sparse_linear.pt").touch()
    assert task_of(folder) == "embedding"
    (folder / "colbert_linear.safetensors").touch()
    assert task_of(folder) == "multi_vector"
    assert task_of(folder, "cls") == "embedding"


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({"query": None, "other": "o: "}, None),
        ({"document": "d: "}, None),
        ({"query": None}, "query"),
        ({}, "query"),
        (None, "document"),
        (None, None),
        ({"other": "o: "}, "other"),
    ],
)
def test_prompts_are_those_of_sentence_transformers(
    make_model: Callable[..., Path], prompts: Any, default: str | None
) -> None:
    folder = make_model("bert", pooling="mean")
    changes = {} if prompts is None else {"prompts": prompts}
    edit(folder / "config_sentence_transformers.json", **changes, default_prompt_name=default)
    theirs = SentenceTransformer(str(folder), device="cpu")
    facts = read(folder)
    assert facts.prompts == theirs.prompts
    assert facts.default_prompt in ("", *facts.prompts)
    assert facts.prompts.get(facts.default_prompt, "") == theirs.prompts.get(default or "", "")


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
def test_only_models_that_embed_have_prompts_of_their_own(make_model: Callable[..., Path], head: str) -> None:
    folder = make_model("bert")
    edit(folder / "config.json", architectures=[f"BertFor{head}"])
    assert read(folder).prompts == {}
    edit(folder / "config_sentence_transformers.json", default_prompt_name="query")
    with pytest.raises(ConfigError, match="query is not one of the prompts"):
        read(folder)


def test_a_default_prompt_that_is_none_of_the_prompts_is_refused(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert", pooling="mean")
    edit(folder / "config_sentence_transformers.json", prompts={"q": "q: "}, default_prompt_name="missing")
    with pytest.raises(ValueError, match="not found in the configured prompts"):
        SentenceTransformer(str(folder), device="cpu")
    with pytest.raises(ConfigError, match="missing is not one of the prompts"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts must be an object"),
        ("config_sentence_transformers.json", {"prompts": {"q": 3}}, "prompt q must be a string"),
        ("tokenizer_config.json", {"model_max_length": "512"}, "model_max_length must be a whole number"),
        (
            "config.json",
            {"max_position_embeddings": "many"},
            "max_position_embeddings must be a whole number",
        ),
        ("tokenizer.json", {"truncation": [3]}, "truncation must be an object"),
        ("config.json", {"auto_map": ["AutoModel"]}, "auto_map must be an object"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(
    make_model: Callable[..., Path], file: str, changes: dict[str, Any], named: str
) -> None:
    folder = make_model("bert", pooling="mean")
    edit(folder / "sentence_bert_config.json", max_seq_length=None)
    edit(folder / file, **changes)
    with pytest.raises(ConfigError, match=f"{file}: {named}"):
        read(folder)


@pytest.mark.parametrize(
    "entry", [{"path": ""}, {"type": "sentence_transformers.models.Transformer"}, "Pooling"]
)
def test_a_module_without_type_or_path_is_refused(make_model: Callable[..., Path], entry: Any) -> None:
    folder = make_model("bert", pooling="mean")
    (folder / "modules.json").write_text(json.dumps([entry]))
    with pytest.raises(ConfigError, match=r"modules\.json: each module must have"):
        read(folder)


def test_a_default_prompt_is_for_embeddings(make_model: Callable[..., Path]) -> None:
    folder = make_model("bert")
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])
    edit(folder / "config_sentence_transformers.json", prompts={"q": "q: "}, default_prompt_name="q")
    with pytest.raises(ConfigError, match="default prompt"):
        read(folder)
