"""What an engine is told is what the settings say, each of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec
import pytest

from gpu_server import specs
from gpu_server.config import Config, EngineConfig, LimitsConfig, ModelConfig, ServerConfig
from gpu_server.errors import ConfigError
from gpu_server.wire.events import EngineSpec, ModelSpec


def test_an_engine_is_told_every_setting() -> None:
    config = Config(
        server=ServerConfig(log_level="debug", log_format="json"),
        limits=LimitsConfig(max_queue_bytes=5000),
        engine=EngineConfig(
            device="cuda:1", max_memory_mb=1, max_batch_tokens=2, max_batch_items=3, batches_in_flight=4,
            threads=5, packed=False, graphs=False, fused=False, compile=False,
        ),
    )  # fmt: skip
    model = ModelSpec(name="n", source="s")
    told = EngineSpec(
        device="cuda:1", max_memory_mb=1, max_batch_tokens=2, max_batch_items=3, batches_in_flight=4,
        threads=5, packed=False, graphs=False, fused=False, compiled=False,
        max_batch_bytes=5000, log_level="debug", log_format="json", models=(model,), gentle=False,
    )  # fmt: skip
    assert specs.of_engine(config, (model,)) == told


def test_a_model_is_told_every_setting_and_has_a_name() -> None:
    model = ModelConfig(
        source="BAAI/bge-m3", name="n", revision="r", dtype="float16", pooling="cls", max_length=1,
        max_batch_tokens=2, max_batch_items=3,
    )  # fmt: skip
    assert {about.name for about in fields(ModelConfig)} == set(ModelSpec.__struct_fields__)
    assert msgspec.structs.asdict(specs.of_model(model)) == vars(model)
    assert specs.of_model(ModelConfig(source="pkg:Class")).name == "Class"


@pytest.mark.parametrize(
    "given", [{"dtype": "float16"}, {"pooling": "cls"}, {"revision": "r"}, {"max_length": 8}]
)
def test_settings_of_texts_are_refused_where_they_would_be_ignored(given: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=f"^pkg:Class is a class, and {next(iter(given))} is a setting of text"
    ):
        specs.of_model(ModelConfig(source="pkg:Class", **given))


def test_a_folder_has_no_revision() -> None:
    with pytest.raises(
        ConfigError, match=r"^/models/bge is a folder, and revision is a setting of models of the"
    ):
        specs.of_model(ModelConfig(source="/models/bge", revision="v1"))
