"""The two apps that `scripts/bench/web.py` measures answer one and the same."""

from __future__ import annotations

import runpy

import pytest
from running_daemon import ROOT

TEXTS = ["a man eats", "the quick brown fox"]


def embed(monkeypatch: pytest.MonkeyPatch, app: str) -> list[list[float]]:
    monkeypatch.setenv("BENCH_APP", app)
    served = runpy.run_path(str(ROOT / "scripts" / "bench" / "web_app.py"))["app"]
    answer = served.test_client().post("/embed", json={"inputs": TEXTS})
    assert answer.status_code == 200, answer.text
    rows: list[list[float]] = answer.json
    return rows


def test_the_plain_app_and_ours_answer_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = embed(monkeypatch, "plain"), embed(monkeypatch, "ours")
    assert [len(row) for row in plain] == [384, 384]
    assert plain == [pytest.approx(row, abs=1e-6) for row in ours]
