"""Triton that cannot build its kernels is no reason not to start."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from gpu_server.models.text import triton_support


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "has_triton", triton_support.has_triton.__wrapped__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), FileNotFoundError("cc")])
def test_without_a_compiler_there_is_a_warning_that_names_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(triton_support, "_run_one", fail)
    with caplog.at_level(logging.WARNING):
        assert not triton_support.has_triton()
    assert "install a C compiler" in caplog.text


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("CUDA error: lost")]
)
def test_a_device_that_fails_is_not_taken_for_a_missing_compiler(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(triton_support, "_run_one", fail)
    with pytest.raises(type(error)):
        triton_support.has_triton()
