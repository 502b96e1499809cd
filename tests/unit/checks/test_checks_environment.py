"""Findings on variables that set nothing."""

from __future__ import annotations

import pytest

from gpu_server.checks import environment


def test_a_misspelt_variable_is_a_warning_with_the_name_that_is_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert environment.variables() == []
    monkeypatch.setenv("GPU_SERVER_MAX_ITMES", "5")
    (finding,) = environment.variables()
    assert finding.severity == "warning"
    assert finding.found == "GPU_SERVER_MAX_ITMES is unknown and sets nothing"
    assert finding.fix == "did you mean GPU_SERVER_MAX_ITEMS?"
