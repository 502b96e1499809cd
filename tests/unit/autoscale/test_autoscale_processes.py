"""Which children of a master are its workers, from a /proc made of files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gpu_server.autoscale.processes import Master
from gpu_server.errors import ConfigError

GUNICORN = b"/usr/bin/python\0/usr/bin/gunicorn\0web:app\0"


class Proc:
    """A /proc with one Gunicorn master, 10."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.add(10, GUNICORN)
        self.children()

    def add(
        self,
        pid: int,
        title: bytes,
        environ: bytes = b"A=1\0",
        ticks: tuple[int, int] = (0, 0),
        start: int = 5,
    ) -> None:
        fields = ["S", *["0"] * 10, *map(str, ticks), *["0"] * 6, str(start)]
        home = self.folder / str(pid)
        (home / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        (home / "stat").write_text(f"{pid} (a) b (c) {' '.join(fields)}")
        (home / "cmdline").write_bytes(title)
        (home / "environ").write_bytes(environ)

    def children(self, *pids: int) -> None:
        (self.folder / "10" / "task" / "10" / "children").write_text(" ".join(map(str, pids)) + " ")

    def master(self) -> Master:
        return Master(10, self.folder)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_cpu_time_of_forked_workers_only(proc: Proc) -> None:
    second = os.sysconf("SC_CLK_TCK")
    proc.add(11, GUNICORN, ticks=(second, second // 2))
    proc.add(12, b"python\0-m\0gpu_server\0autoscale\0")
    proc.add(13, GUNICORN, environ=b"A=1\0GUNICORN_PID=10\0")
    proc.children(11, 12, 13, 14)
    assert proc.master().active_s() == {11: 1.5}


def test_time_that_its_threads_waited_for_a_core_counts(proc: Proc) -> None:
    proc.add(11, GUNICORN, ticks=(1, 1))
    proc.children(11)
    for tid, line in ((11, "1500000000 250000000 7"), (12, "0 250000000 3")):
        (proc.folder / "11" / "task" / str(tid)).mkdir(exist_ok=True)
        (proc.folder / "11" / "task" / str(tid) / "schedstat").write_text(line)
    assert proc.master().active_s() == {11: 2.0}


def test_titles_of_setproctitle(proc: Proc) -> None:
    proc.add(10, b"gunicorn: master [web:app]\0\0", environ=b"")
    proc.add(11, b"gunicorn: worker [web:app]\0\0", environ=b"")
    proc.add(12, b"gunicorn: dirty-arbiter\0", environ=b"")
    proc.children(11, 12)
    assert proc.master().active_s() == {11: 0.0}


def test_a_pid_that_is_someone_elses_now_is_not_the_master(proc: Proc) -> None:
    master = proc.master()
    assert master.alive()
    proc.add(10, GUNICORN, start=6)
    assert not master.alive()


def test_what_is_no_gunicorn_is_refused(proc: Proc) -> None:
    proc.add(20, b"/usr/sbin/nginx\0-g\0")
    with pytest.raises(ConfigError, match="20 is not Gunicorn: /usr/sbin/nginx -g"):
        Master(20, proc.folder)
    with pytest.raises(ConfigError, match="no process has the id 21"):
        Master(21, proc.folder)


def test_the_signals(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    proc.master().signal(True)
    proc.master().signal(False)
    assert sent == [(10, signal.SIGTTIN), (10, signal.SIGTTOU)]
