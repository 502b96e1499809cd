"""Mutated messages are accepted or refused, and never do anything else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CASES = 50_000
# Far less than any of the lengths that the mutants claim.
MOST_BYTES = 16 << 20


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    vectors = ROOT / "proto" / "vectors" / "valid.json"
    done = subprocess.run(
        [sys.executable, HERE / "fuzz_codec.py", vectors, "1", str(CASES)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_mutant_is_accepted_or_refused(report: dict[str, Any]) -> None:
    outcomes = report["outcomes"]
    assert sum(outcomes.values()) == CASES
    assert set(outcomes) == {"accepted", "invalid_request", "unsupported_version", "too_large"}
    assert min(outcomes["accepted"], outcomes["invalid_request"]) > CASES / 20


def test_decoding_runs_no_code_and_touches_nothing(report: dict[str, Any]) -> None:
    """No audit event but the canary: not pickle.find_class, marshal.loads, exec, import, open, nor any other."""
    assert report["events"] == {"compile": 1}


def test_memory_does_not_follow_what_messages_claim(report: dict[str, Any]) -> None:
    assert report["grown_bytes"] < MOST_BYTES
