"""What `gpu-server check` says of models before any is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_server.checks import models
from gpu_server.config import Config, ModelConfig


def findings(source: str) -> list[tuple[str, str]]:
    found = models.names(Config(models=(ModelConfig(source=source),)))
    return [(finding.found, finding.fix) for finding in found]


def test_a_folder_whose_file_is_broken_is_to_be_mended(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{broken")
    ((message, fix),) = findings(str(tmp_path))
    assert "config.json is not JSON" in message
    assert fix == "mend or replace that"


def test_what_is_not_there_is_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    for source, said in {
        "./absent": "does not exist",
        "mine.py": "did you mean mine:Class",
        "no such thing": "neither module:Class, a folder, nor a hub id",
    }.items():
        ((message, fix),) = findings(source)
        assert said in message
        assert fix == "name module:Class, a folder or a hub id that is there"
