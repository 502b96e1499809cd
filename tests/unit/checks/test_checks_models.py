"""What `gpu-server check` says of models before any is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu_server.checks import models
from gpu_server.config import Config, ModelConfig


def findings(*sources: str, **settings: Any) -> list[tuple[str, str]]:
    found = models.names(Config(models=tuple(ModelConfig(source=one, **settings) for one in sources)))
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
        "~no-such-user/folder": "there is no such user",
        "mine.py": "did you mean mine:Class",
        "no such thing": "neither module:Class, a folder, nor a hub id",
    }.items():
        ((message, fix),) = findings(source)
        assert said in message
        assert fix == "name module:Class, a folder or a hub id that is there"


@pytest.mark.parametrize(
    ("sources", "settings", "said", "advice"),
    [
        (("mine:Good",), {"dtype": "float16"}, "dtype is a setting of text models", "leave it out"),
        (("./folder",), {"revision": "v1"}, "revision is a setting of models of the hub", "leave it out"),
        (("mine:Good", "mine:Good"), {}, "two models are named 'Good'", "give one another name"),
    ],
)
def test_what_a_start_would_refuse_is_found_without_loading(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sources: tuple[str, ...],
    settings: dict[str, Any],
    said: str,
    advice: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text(
        "class Good:\n    def load(self, device): ...\n    def forward(self, batch): ...\n"
    )
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("gpu_server.model_folder.check", lambda folder: None)
    ((message, fix),) = findings(*sources, **settings)
    assert said in message
    assert fix.startswith(advice)


def test_each_model_has_its_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text("from elsewhere import *\n")
    first, second = findings("mine:Good", "./absent", dtype="float16")
    assert "dtype is a setting of text models" in first[0]
    assert "does not exist" in second[0]
