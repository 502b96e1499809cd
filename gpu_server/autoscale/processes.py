"""A Gunicorn master and its workers as /proc shows them, and the signals that change their number."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from gpu_server.errors import ConfigError

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)
PROC = Path("/proc")


class Master:
    """One Gunicorn master. Raises ConfigError where there is no such process or it is another user's."""

    def __init__(self, pid: int, proc: Path = PROC) -> None:
        self.pid = pid
        self._proc = proc
        try:
            self._started = _stat(proc, pid)[19]
            self._title = _read(proc, pid, "cmdline")
            self._environ = _read(proc, pid, "environ")
        except _GONE:
            raise ConfigError(f"no process has the id {pid}") from None
        except PermissionError:
            raise ConfigError(f"process {pid} is another user's; run as that user or as root") from None
        if b"gunicorn" not in self._title:
            raise ConfigError(f"process {pid} is not Gunicorn: {_shown(self._title)}")

    def alive(self) -> bool:
        """Whether it is still the process that it was."""
        try:
            fields = _stat(self._proc, self.pid)
        except _GONE:
            return False
        return fields[19] == self._started and fields[0] not in "ZX"

    def active_s(self) -> dict[int, float]:
        """Seconds that each worker's threads were on a core or waited for one, by pid.

        Those that were told to end are still in it. Waiting counts, because a worker on a crowded machine can be at its
        limit with half a core.
        """
        active = {}
        for pid in self._children():
            with suppress(*_GONE, PermissionError):
                if self._is_worker(pid):
                    active[pid] = self._threads_s(pid) or self._cpu_s(pid)
        return active

    def _threads_s(self, pid: int) -> float:
        """0 on a kernel without scheduler statistics."""
        total_ns = 0
        for task in (self._proc / str(pid) / "task").iterdir():
            with suppress(*_GONE):
                ran, waited, _ = (task / "schedstat").read_text().split()
                total_ns += int(ran) + int(waited)
        return total_ns / 1e9

    def _cpu_s(self, pid: int) -> float:
        fields = _stat(self._proc, pid)
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def signal(self, more: bool) -> None:
        """Ask for one more worker, or one less."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTTIN if more else signal.SIGTTOU)

    def _children(self) -> list[int]:
        with suppress(*_GONE):
            tasks = list((self._proc / str(self.pid) / "task").iterdir())
            return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return []

    def _is_worker(self, pid: int) -> bool:
        """A worker is forked, and so has the master's arguments and variables, unless setproctitle gave it a title."""
        title = _read(self._proc, pid, "cmdline")
        if title.startswith(b"gunicorn: "):
            return title.startswith(b"gunicorn: worker")
        return title == self._title and _read(self._proc, pid, "environ") == self._environ


def _stat(proc: Path, pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: what stands before them may hold spaces."""
    return _read(proc, pid, "stat").decode().rpartition(")")[2].split()


def _read(proc: Path, pid: int, name: str) -> bytes:
    return (proc / str(pid) / name).read_bytes()


def _shown(title: bytes) -> str:
    return title.replace(b"\0", b" ").decode(errors="replace").strip()[:80]
