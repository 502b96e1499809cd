"""What every unit test has: nothing that happens because time has passed."""

from __future__ import annotations

import pytest

from gpu_server import calls


@pytest.fixture(autouse=True)
def models_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask for the models again after two seconds, which a slow machine may take for any test."""
    monkeypatch.setattr(calls, "HELLO_AGE_S", 1e6)
