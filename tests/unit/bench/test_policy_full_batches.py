"""Pipelined requests fill the simulated engine's batches, and a batch costs what the graph it runs in does."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from running_daemon import ROOT


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return importlib.import_module("policy")


@pytest.mark.parametrize("graphs", [False, True])
def test_pipelined_requests_fill_batches(policy: Any, graphs: bool) -> None:
    engine = policy.Engine(273e-6, 0.366e-6, 150e-6, 0.05, policy.GRAPHS if graphs else ())
    seen = policy.Simulation(policy.Ours, engine, 1).closed(64, policy.PIPELINED, 1000)
    assert 0.98 * 16_384 <= seen.batch_tokens <= 16_384


def test_a_batch_costs_what_the_smallest_graph_that_holds_it_does(policy: Any) -> None:
    bare = policy.Engine(1.0, 1.0, 0.0)
    graphs = policy.Engine(1.0, 1.0, 0.0, graphs=policy.GRAPHS)
    assert [graphs.service_s(n) for n in (1, 16, 400, 12_289)] == [
        bare.service_s(n) for n in (16, 16, 512, 16_384)
    ]


def test_the_graphs_are_those_of_the_engine(policy: Any) -> None:
    graphs = pytest.importorskip("gpu_server.models.text.graphs")
    assert list(policy.GRAPHS) == graphs.ladder(16_384)
