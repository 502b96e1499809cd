"""Folders that no engine could load are refused by what is wrong with them, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_server import model_folder
from gpu_server.errors import ConfigError, ModelFolderMissing


def safetensors(size: int = 8) -> bytes:
    """A file with one tensor of that many bytes."""
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that is well."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    return tmp_path


def test_a_whole_folder_passes(folder: Path) -> None:
    model_folder.check(folder)


def test_old_weights_pass(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    model_folder.check(folder)


def test_the_encoder_may_be_in_a_folder_below(folder: Path) -> None:
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).rename(inner / name)
    (folder / "modules.json").write_text('[{"path": "0_Transformer"}]')
    model_folder.check(folder)
    (inner / "config.json").unlink()
    with pytest.raises(ModelFolderMissing, match=r"0_Transformer has no config\.json"):
        model_folder.check(folder)


def test_shards_are_those_of_the_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}')
    model_folder.check(folder)
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    with pytest.raises(ModelFolderMissing, match=r"model-2\.safetensors is missing"):
        model_folder.check(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("config.json", r"has no config\.json"),
        ("tokenizer.json", r"tokenizer\.json is missing"),
        ("model.safetensors", "has no weights"),
    ],
)
def test_what_is_missing_is_named(folder: Path, name: str, reason: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFolderMissing, match=reason):
        model_folder.check(folder)


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("config.json", lambda data: b"{", r"config\.json is not JSON"),
        ("config.json", lambda data: b"[]", "must hold a JSON object"),
        ("model.safetensors", lambda data: data[:-1], r"has \d+ bytes and should have \d+"),
        ("model.safetensors", lambda data: data + b"x", r"has \d+ bytes and should have \d+"),
        ("model.safetensors", lambda data: b"", "no safetensors file"),
        ("model.safetensors", lambda data: b"\xff" * 64, "no safetensors file"),
        ("model.safetensors", lambda data: b"\x02" + bytes(7) + b"[]", "no safetensors file"),
        (
            "model.safetensors",
            lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "git lfs pull",
        ),
    ],
)
def test_what_cannot_be_read_is_named(
    folder: Path, name: str, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    path = folder / name
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ConfigError, match=reason) as raised:
        model_folder.check(folder)
    assert str(path) in str(raised.value)


def test_modules_that_cannot_be_understood_are_for_the_engine_to_explain(folder: Path) -> None:
    (folder / "modules.json").write_text("[{}]")
    model_folder.check(folder)
