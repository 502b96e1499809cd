"""How many threads torch should use: one for each physical core that this process may run on, within its cgroup's quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def available() -> int:
    """Physical cores that this process may use: a second thread on a core only slows matrix products down."""
    return max(1, min(_physical(), *_quotas()))


def _physical() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    """The processors that share a core with this one; where Linux does not say, it is alone."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quotas() -> Iterator[int]:
    """What cgroup v2 grants, own group and those above it: a container may see every core and get two."""
    yield os.cpu_count() or 1
    try:
        groups = [line[3:] for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return
    for group in groups:
        own = _CGROUPS / group.strip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(_CGROUPS):
                yield from _quota(folder / "cpu.max")


def _quota(file: Path) -> Iterator[int]:
    try:
        quota, period = file.read_text().split()
    except (OSError, ValueError):
        return
    if quota != "max":
        yield math.ceil(int(quota) / int(period))
