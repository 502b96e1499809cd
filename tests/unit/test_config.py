"""Settings: flag over environment over file over default; every mistake names the setting and where it came from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gpu_server import config
from gpu_server.errors import ConfigError


def load(toml: str | None = None, tmp_path: Path | None = None, **sources: Any) -> config.Config:
    path = None
    if toml is not None:
        assert tmp_path is not None
        path = tmp_path / "gpu-server.toml"
        path.write_text(toml)
    return config.load(path, **{"env": {}, **sources})


def test_without_anything_it_is_the_defaults() -> None:
    assert load() == config.Config()


def test_each_source_wins_over_the_next(tmp_path: Path) -> None:
    toml = "[limits]\nmax_items = 10\nmax_text_bytes = 20\nmax_queue_items = 30\n"
    env = {"GPU_SERVER_MAX_ITEMS": "11", "GPU_SERVER_MAX_TEXT_BYTES": "21"}
    limits = load(toml, tmp_path, env=env, flags={"max_items": "12", "max_text_bytes": None}).limits
    assert (limits.max_items, limits.max_text_bytes, limits.max_queue_items) == (12, 21, 30)
    assert limits.max_peer_bytes == config.LimitsConfig().max_peer_bytes


def test_an_empty_variable_is_no_setting() -> None:
    assert load(env={"GPU_SERVER_MAX_ITEMS": ""}) == config.Config()


def test_whole_numbers_are_numbers(tmp_path: Path) -> None:
    assert load("[server]\ndrain_timeout_s = 5\n", tmp_path).server.drain_timeout_s == 5.0


@pytest.mark.parametrize(
    ("text", "value"), [("off", False), ("0", False), ("False", False), ("ON", True), ("1", True)]
)
def test_switches_are_words_in_the_environment(text: str, value: bool) -> None:
    assert load(env={"GPU_SERVER_GRAPHS": text}).engine.graphs is value
    assert load(env={"GPU_SERVER_GRAPHS": text}, flags={"graphs": not value}).engine.graphs is not value


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device: str) -> None:
    assert load(flags={"device": device}).engine.device == device


def test_models_are_tables_or_arguments(tmp_path: Path) -> None:
    toml = '[[models]]\nsource = "a:B"\nname = "b"\n[[models]]\nsource = "c/d"\nmax_length = 64\n'
    models = load(toml, tmp_path).models
    assert [(m.source, m.name, m.max_length) for m in models] == [("a:B", "b", 0), ("c/d", "", 64)]
    assert [m.source for m in load(toml, tmp_path, sources=("x:Y", "z")).models] == ["x:Y", "z"]


def test_a_model_argument_may_have_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    given = load(sources=("first=x:Y", "z", str(folder), f"c={folder}")).models
    assert [(m.name, m.source) for m in given] == [
        ("first", "x:Y"), ("", "z"), ("", str(folder)), ("c", str(folder)),
    ]  # fmt: skip


@pytest.mark.parametrize("sources", [(), ("x:Y",)])
def test_flags_of_a_model_are_for_the_one_there_is(sources: tuple[str, ...], tmp_path: Path) -> None:
    flags = {"dtype": "float16", "max_length": "64", "revision": None, "max_batch_tokens": "100"}
    given = load(sources=sources, flags=flags)
    assert given.models == (config.ModelConfig(source="".join(sources), dtype="float16", max_length=64),)
    assert given.engine.max_batch_tokens == 100
    file = load('[[models]]\nname = "b"\ndtype = "float32"\n', tmp_path, flags=flags)
    assert file.models == (config.ModelConfig(name="b", dtype="float16", max_length=64),)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"flags": {"max_items": "many"}}, "--max-items: 'many' is not a whole number"),
        ({"flags": {"max_items": "1.5"}}, "--max-items: '1.5' is not a whole number"),
        ({"flags": {"max_items": "0"}}, "--max-items: 0 is outside 1 … "),
        ({"flags": {"drain_timeout_s": "nan"}}, "--drain-timeout-s: nan is outside 0 … 3600"),
        ({"flags": {"drain_timeout_s": "x"}}, "--drain-timeout-s: 'x' is not a number"),
        ({"env": {"GPU_SERVER_LOG_LEVEL": "loud"}}, "GPU_SERVER_LOG_LEVEL: 'loud' is not one of debug, info"),
        ({"env": {"GPU_SERVER_GRAPHS": "maybe"}}, "GPU_SERVER_GRAPHS: 'maybe' is not true or false"),
        ({"flags": {"device": "tpu"}}, "--device: 'tpu' is not auto (the first GPU if there is one), cpu, cuda or"),
        ({"flags": {"device": "cuda:x"}}, "--device: 'cuda:x' is not auto"),
        ({"flags": {"dtype": "float8"}}, "--dtype: 'float8' is not one of auto, float32"),
        ({"flags": {"dtype": ""}}, "--dtype: '' is not one of auto, float32"),
        ({"flags": {"max_length": "1"}, "sources": ("a", "b")}, "--max-length is for one model, and there are 2"),
        ({"env": {"GPU_SERVER_THREADS": "-1"}}, "GPU_SERVER_THREADS: -1 is outside 0 … 4096"),
    ],
)  # fmt: skip
def test_mistakes_in_flags_and_environment(sources: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(**sources)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[server]\nlog_levle = 'info'\n", "[server] key 'log_levle' is unknown; did you mean 'log_level'?"),
        ("[sevrer]\n", "section 'sevrer' is unknown; did you mean 'server'?"),
        ("[engine]\nzzz = 1\n", "[engine] key 'zzz' is unknown; known: batch_timeout_s, batches_in_flight, "),
        ("[[models]]\nsuorce = 'x'\n", "[models] key 'suorce' is unknown; did you mean 'source'?"),
        ("[[models]]\ndtype = 'float8'\n", "models.dtype: 'float8' is not one of auto, float32"),
        ("[[models]]\npooling = 'median'\n", "models.pooling: 'median' is not one of (empty), cls"),
        ("[limits]\nmax_items = true\n", "limits.max_items: True is not a whole number"),
        ("[limits]\nmax_items = 1.0\n", "limits.max_items: 1.0 is not a whole number"),
        ("[server]\nlog_level = 3\n", "server.log_level: 3 is not a string"),
        ("server = 3\n", "[server] must be a table"),
        ("models = 3\n", "models must be [[models]] tables"),
        ("[models]\nsource = 'x'\n", "models must be [[models]] tables"),
        ("[server\n", "(at line 1"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_name_it(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(toml, tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "gpu-server.toml") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        config.load(tmp_path / "none.toml", env={})
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(tmp_path, env={})
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    with pytest.raises(ConfigError, match=r"latin\.toml"):
        config.load(tmp_path / "latin.toml", env={})


def test_every_default_is_a_value_that_would_be_accepted() -> None:
    for kind in (*config.SECTIONS.values(), *config.OTHERS.values()):
        for about in fields(kind):
            assert (
                config.parse(about.default, type(about.default), about.name, about.metadata) == about.default
            )


def test_no_two_settings_share_a_flag() -> None:
    names = [about.name for kind in config.SECTIONS.values() for about in fields(kind)]
    assert len(names) == len(set(names))


def test_the_reference_names_every_setting() -> None:
    page = config.reference()
    for kind in (*config.SECTIONS.values(), *config.OTHERS.values()):
        for about in fields(kind):
            assert f"| `{about.name}` |" in page
            flagged = about.metadata["flag"] or about.name in SHARED
            variable = flagged if kind is not config.ModelConfig else about.name in SHARED
            assert (f"`--{about.name.replace('_', '-')}`" in page) == flagged
            assert (f"`{config.env_name(about.name)}`" in page) == (variable or kind is config.ClientConfig)


SHARED = {"max_batch_tokens", "max_batch_items", "insecure_tcp"}
