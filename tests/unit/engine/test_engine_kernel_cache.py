"""Compiled kernels are kept for this user alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_server.engine import kernel_cache

SETTINGS = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for setting in SETTINGS:
        # Set first, so that what the code sets is taken back.
        monkeypatch.setenv(setting, "")
        monkeypatch.delenv(setting)


def test_nobody_else_may_write_there(tmp_path: Path) -> None:
    (tmp_path / "gpu-server" / "triton").mkdir(parents=True, mode=0o777)
    kernel_cache.keep()
    for setting, name in zip(SETTINGS, ("triton", "inductor"), strict=True):
        folder = Path(os.environ[setting])
        assert folder == tmp_path / "gpu-server" / name
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_was_chosen_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    kernel_cache.keep()
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "gpu-server" / "inductor")


def test_a_folder_that_cannot_be_made_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gpu-server").touch()
    kernel_cache.keep()
    assert not any(setting in os.environ for setting in SETTINGS)
    assert "compiled kernels are not kept" in caplog.text
