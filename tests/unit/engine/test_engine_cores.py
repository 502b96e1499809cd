"""How many threads torch gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpu_server.engine import cores

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors on four cores, all of which may be used, and no cgroup."""
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(cores, "_CPUS", tmp_path)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return tmp_path


def test_one_for_each_physical_core(machine: Path) -> None:
    assert cores.available() == 4


def test_only_cores_that_may_be_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5})
    assert cores.available() == 2


@pytest.mark.parametrize(("quota", "want"), [("150000 100000", 2), ("10000 100000", 1), ("max 100000", 4)])
def test_no_more_than_the_quota_of_a_group_above(machine: Path, quota: str, want: int) -> None:
    (machine / "cgroup").write_text("1:cpu:/old\n0::/slice/own\n")
    (machine / "slice" / "own").mkdir(parents=True)
    (machine / "slice" / "own" / "cpu.max").write_text("max 100000\n")
    (machine / "slice" / "cpu.max").write_text(f"{quota}\n")
    assert cores.available() == want
