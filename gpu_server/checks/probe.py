"""Runs a module of `gpu_server.probes` in a process of its own: what it imports, and how it dies, stays there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_server.errors import GPUServerError


class ProbeFailed(GPUServerError):
    """A probe ended without an answer; the message is the last thing that it wrote."""


def run(
    name: str,
    given: Mapping[str, Any],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What the probe answers to `given`. env: None is this process's. Raises ProbeFailed."""
    command = [sys.executable, "-m", f"gpu_server.probes.{name}"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=cwd,
            env=env,
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"no answer within {timeout_s:.0f} s") from None
    except OSError as error:
        raise ProbeFailed(f"cannot be started: {error.strerror}") from None
    # The last line is the answer: what is imported may print before it.
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise ProbeFailed(said[-1] if said else ended)
