"""`scripts/serve --check`: the two commands, together, in one."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
from numpy.typing import NDArray
from running_daemon import ROOT, clean_environment

TWO = ("A man is eating food.", "A man eats something.")


def test_check_prints_the_similarity(reference: dict[str, NDArray[np.float32]]) -> None:
    ended = subprocess.run(
        [sys.executable, "scripts/serve.py", "--check"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    printed = re.search(r"^similarity of (.+): (-?\d\.\d{4})$", ended.stdout, re.M)
    assert printed, ended.stdout
    assert printed[1] == f"{TWO[0]!r} and {TWO[1]!r}"
    assert abs(float(printed[2]) - float(reference[TWO[0]] @ reference[TWO[1]])) <= 1e-4
    assert "Traceback" not in ended.stderr
