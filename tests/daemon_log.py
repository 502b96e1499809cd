"""When things happened, for tests: lines of a daemon's log, and the start of a process."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """One line of the daemon's log: Unix time, and what follows the event."""

    at: float
    rest: str

    def value(self, key: str) -> float:
        """A number among its values."""
        found = re.search(rf"\b{key}=(-?[0-9.]+)", self.rest)
        assert found, f"no {key} in {self.rest!r}"
        return float(found[1])


def lines(log: str, event: str) -> list[Line]:
    """The daemon's lines of one event, in order."""
    found = re.findall(rf"^(\S+Z) \w+ daemon {re.escape(event)}(?= |$)(.*)$", log, re.MULTILINE)
    return [Line(datetime.fromisoformat(stamp).timestamp(), rest) for stamp, rest in found]


def started_at(pid: int) -> float:
    """When a process that runs now was started, in Unix time."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
