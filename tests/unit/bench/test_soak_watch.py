"""The soak's verdict: what counts as flat, and which moments count at all. And its clients know a wrong answer."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_daemon import ROOT


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))


@pytest.fixture
def watch() -> Any:
    return importlib.import_module("soak_watch")


@pytest.mark.parametrize(
    ("unit", "values", "flat"),
    [
        ("MiB", [100.0] * 12 + [131.0] * 4, True),
        ("MiB", [100.0] * 12 + [133.0] * 4, False),
        ("MiB", [2000.0] * 12 + [2099.0] * 4, True),
        ("MiB", [2000.0] * 12 + [2101.0] * 4, False),
        ("fds", [30.0] * 12 + [34.0] * 4, True),
        ("fds", [30.0] * 12 + [35.0] * 4, False),
        ("fds", [30.0] * 12 + [30.0, 31.0, 90.0, 30.0], True),
        ("GPU MiB", [50_000.0] * 12 + [50_065.0] * 4, False),
        ("fds", [35.0] * 4 + [30.0] * 12, True),
        ("fds", [30.0], True),
    ],
)
def test_flat_is_a_last_quarter_within_the_tolerance(
    watch: Any, unit: str, values: list[float], flat: bool
) -> None:
    assert watch.judge(watch.Figure("daemon", unit), values).flat is flat


def test_the_warm_up_and_moments_with_two_engines_do_not_count(watch: Any) -> None:
    figure = watch.Figure("engine", "MiB")

    def sample(at_s: float, value: float, changing: bool = False) -> Any:
        return watch.Sample(at_s, changing, {figure: value})

    made = watch.Watch(None, 0, 0)
    made.samples = [
        *(sample(at, 1.0) for at in range(10)),
        *(sample(at, 500.0) for at in range(10, 35)),
        *(sample(at, 9000.0, changing=True) for at in range(35, 41)),
    ]
    (finding,) = made.findings()
    assert (finding.first, finding.last, finding.flat) == (500.0, 500.0, True)


def test_a_process_of_ones_own_has_memory_and_descriptors(watch: Any) -> None:
    memory, files = watch._process("web", [os.getpid()]).items()
    assert (str(memory[0]), str(files[0])) == ("web MiB", "web fds")
    assert memory[1] > 10
    assert files[1] >= 3


def test_an_answer_that_belongs_to_another_request_is_wrong(tmp_path: Path) -> None:
    client = importlib.import_module("soak_client")
    bodies, wanted = tmp_path / "bodies.jsonl", tmp_path / "wanted.npy"
    bodies.write_text("".join(json.dumps({"inputs": [name, name]}) + "\n" for name in "ab"))
    rows = np.random.default_rng(0).normal(size=(2, 2, 8)).astype(np.float32)
    np.save(wanted, rows)
    work = client.Work(
        url="", endpoint="", bodies=str(bodies), wanted=str(wanted), senders=(1, 1), rates=(0.0, 0.0),
        begins_s=0.0, period_s=1.0, periods=1, timeout_s=1.0, seed=0,
    )  # fmt: skip
    cases = client.Cases(work)
    assert cases.judge(0, rows[0] * 1.0001) == "200"
    assert cases.judge(0, rows[1]) == client.WRONG
    assert cases.judge(0, rows[0][::-1]) == client.WRONG
    assert cases.judge(0, rows[0][:1]) == client.WRONG
    assert cases.judge(0, rows[0] * np.nan) == client.WRONG
