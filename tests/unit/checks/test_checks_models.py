"""What `gpu-server check` says of models before any is loaded."""

from __future__ import annotations

from pathlib import Path

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


def test_a_folder_that_is_missing_is_to_be_named(tmp_path: Path) -> None:
    ((message, fix),) = findings(str(tmp_path / "absent"))
    assert "does not exist" in message
    assert fix == "name module:Class, a folder or a hub id that is there"
