"""The set of models: from settings, from a request of the owner, with and without one."""

from __future__ import annotations

import pytest

from gpu_server.config import ModelConfig
from gpu_server.daemon import model_set
from gpu_server.errors import ConfigError, InvalidRequest, ModelNotFound
from gpu_server.source import DEFAULT_NAME

TWO = model_set.from_config((ModelConfig(source="m:A"), ModelConfig(source="o/b", name="b", dtype="float16")))


def test_names_come_from_the_source_unless_given() -> None:
    assert [(spec.name, spec.source, spec.dtype) for spec in TWO] == [
        ("A", "m:A", "auto"),
        ("b", "o/b", "float16"),
    ]
    assert [spec.name for spec in model_set.from_config(())] == [DEFAULT_NAME]
    with pytest.raises(ConfigError, match="two models are named 'A'"):
        model_set.from_config((ModelConfig(source="m:A"), ModelConfig(source="n:A")))


def test_a_model_is_added_behind_the_others_or_replaces_its_namesake() -> None:
    added = model_set.with_model(TWO, model_set.from_request("", {"source": "m:C"}))
    assert [spec.name for spec in added] == ["A", "b", "C"]
    replaced = model_set.with_model(TWO, model_set.from_request("A", {"source": "n:A2"}))
    assert [(spec.name, spec.source) for spec in replaced] == [("A", "n:A2"), ("b", "o/b")]


def test_a_model_is_taken_out_but_never_the_last() -> None:
    left = model_set.without_model(TWO, "A")
    assert [spec.name for spec in left] == ["b"]
    with pytest.raises(ModelNotFound, match="'A' is not served; served: b"):
        model_set.without_model(left, "A")
    with pytest.raises(InvalidRequest, match="'b' is the only model"):
        model_set.without_model(left, "b")


def test_settings_of_a_request_are_those_of_a_models_table() -> None:
    params = {"source": "o/c", "max_batch_items": 7, "max_length": "12", "pooling": "cls"}
    spec = model_set.from_request("c", params)
    assert (spec.name, spec.max_batch_items, spec.max_length, spec.pooling) == ("c", 7, 12, "cls")


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"source": "m:C", "name": "x"}, "'name' is no setting of a model; known: source, revision"),
        ({"source": "m:C", "dtype": "int3"}, "dtype: 'int3' is not one of auto"),
        ({"source": "m:C", "max_length": "many"}, "max_length: 'many' is not a whole number"),
        ({"source": "m:C:D"}, "is not module:Class"),
        ({"source": "m:C", "pooling": "cls"}, "m:C is a class, and pooling is a setting of text models"),
    ],
)
def test_wrong_settings_of_a_request(params: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        model_set.from_request("", params)
