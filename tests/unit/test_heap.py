"""Memory that is taken and freed again and again stays with the process, unless its owner has said otherwise."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
from running_daemon import clean_environment

from gpu_server import heap

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")

CHURN = """
import resource, sys
from gpu_server import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def churn(rounds):
    before = faults()
    for _ in range(rounds):
        # As a daemon does: some batches' answers, one after the other, of which none is the largest.
        blocks = [bytearray(size << 10) for size in (400, 500, 450, 480)]
        del blocks
    return faults() - before

if "keep" in sys.argv:
    heap.keep()
churn(5)
print(churn(50))
"""


def churned(*arguments: str, **env: str) -> int:
    """Page faults of 50 rounds in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", CHURN, *arguments],
        env=clean_environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(run.stdout)


def test_what_is_freed_is_used_again_without_a_page_fault() -> None:
    assert churned() > 1000
    assert churned("keep") < 100


@pytest.mark.parametrize("name", heap.SETTINGS)
def test_a_setting_of_the_environment_stays(name: str) -> None:
    value = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    assert churned("keep", **{name: value}) > 1000


def test_large_blocks_go_back_to_the_system() -> None:
    code = (
        "from gpu_server import heap; from pathlib import Path; heap.keep()\n"
        "held = [bytearray(b'x') * (size << 20) for size in (8, 16, 24, 33, 48, 64, 30, 30)]\n"
        "del held\n"
        "print(int(Path('/proc/self/statm').read_text().split()[1]) * 4 >> 10)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert int(run.stdout) < 100
