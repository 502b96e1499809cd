"""How long a client believes what the daemon said of its models."""

from __future__ import annotations

import pytest

from gpu_server import Client, calls
from gpu_server.testing import FakeServer


def test_models_are_asked_for_again_once_they_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(calls, "HELLO_AGE_S", 2.0)
    monkeypatch.setattr(calls.time, "monotonic", lambda: now[0])
    with FakeServer() as server, Client(server.endpoint) as client:
        client.models()
        now[0] += 1.9
        client.models()
        assert server.requests["hello"] == 1
        now[0] += 0.2
        client.models()
        assert server.requests["hello"] == 2
