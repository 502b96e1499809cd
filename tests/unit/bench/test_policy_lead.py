"""By how much ours leads is said with its error, and what the seeds do not settle is level."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from running_daemon import ROOT


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    return importlib.import_module("policy")


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.02, 0.03, 0.02], "ahead"),
        ([-0.02, -0.03, -0.02], "behind"),
        ([0.04, -0.03, 0.01], "level"),
        ([-0.0005] * 3, "level"),
        ([0.5], "level"),
    ],
    ids=["all better", "all worse", "either", "worse by nothing that counts", "one seed"],
)
def test_the_verdict_is_what_the_interval_leaves(policy: Any, gains: list[float], verdict: str) -> None:
    assert policy.Lead.of(gains).verdict == verdict


def test_only_what_is_behind_is_bold(policy: Any) -> None:
    assert str(policy.Lead(-1.2, 0.5)) == "(**-1.2 ± 0.5**)"
    assert str(policy.Lead(1.2, 0.5)) == "(+1.2 ± 0.5)"


def test_more_a_second_and_less_time_are_better(policy: Any) -> None:
    assert policy.gain(0, 110, 100) == pytest.approx(0.1)
    assert policy.gain(1, 90, 100) == pytest.approx(0.1)


def test_policies_are_compared_seed_by_seed(policy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # Both differ by half from seed to seed, and the rival is a tenth behind in each.
    ours = [[110.0, 9.0], [165.0, 13.5], [220.0, 18.0]]
    rival = [[100.0, 10.0], [150.0, 15.0], [200.0, 20.0]]
    assert policy.compare("30%", {"ours": ours, "rival": rival}) == ["ahead", "ahead"]
    assert "| 30% | rival | 150 (+10.0 ± 0.0) | 15.00 (+10.0 ± 0.0) |" in capsys.readouterr().out


def test_a_seed_repeats_a_run_and_another_does_not(policy: Any) -> None:
    engine, workload = policy.Engine(273e-6, 0.366e-6, 150e-6, 0.05), policy.WORKLOADS["one text a request"]
    runs = [
        policy.figures(policy.Simulation(policy.Ours, engine, n).closed(4, workload, 100)) for n in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
