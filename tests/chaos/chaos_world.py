"""What is broken and mended: the daemon, restarted as a service manager would, and Gunicorn in front of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from running_daemon import RunningDaemon, alive, children, until
from running_gunicorn import CLASSES, RunningGunicorn

from gpu_server.client import Client
from gpu_server.daemon.instance import control_endpoint
from gpu_server.errors import RemoteError
from gpu_server.wire.documents import Status

HERE = Path(__file__).parent
RESTART_S = 0.1
WORKERS = 3
OPTIONS = ("--batch-timeout-s", "2", "--max-queue-items", "4000", "--default-deadline-ms", "5000",
           "--max-peer-bytes", "2000000", "--drain-timeout-s", "5")  # fmt: skip


class Keeper:
    """Keeps a daemon running over whatever ends it; `daemon` is the current one, `ended` their exit codes."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self._endpoint = endpoint
        self._folder = folder
        self.version = 1
        shutil.copy(HERE / "chaos_model.py", folder)
        self.write_settings()
        self.ended: list[int] = []
        self.seen: set[int] = set()
        self.tracebacks: list[str] = []
        self._closing = False
        self.daemon = self._start()
        self.daemon.wait_ready()
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def write_settings(self, **settings: object) -> None:
        """What the next engine reads. The module changes too: its time is what a model's version is made of."""
        (self._folder / "settings.json").write_text(json.dumps({"version": self.version, **settings}))
        module = self._folder / "chaos_model.py"
        module.write_text(module.read_text().partition("\n# ")[0] + f"\n# {self.version} {settings}\n")

    def engine(self) -> int | None:
        """Process id of the engine that serves now, if one does."""
        status = self.status()
        return status.engines[0].pid if status is not None and status.engines else None

    def status(self) -> Status | None:
        """The daemon's status; None while nobody answers."""
        with suppress(RemoteError):
            status = self.daemon.client.status(timeout_s=1)
            self.seen |= {engine.pid for engine in status.engines}
            return status
        return None

    def control(self, operation: str) -> RemoteError | None:
        """One of the owner's verbs; its error, if it got one."""
        with Client(control_endpoint(self._endpoint), timeout_s=15) as client:
            try:
                client.request(op=operation)
            except RemoteError as error:
                return error
        return None

    def stop(self) -> int:
        """Ask the daemon to stop as a service manager would; its exit code."""
        self._closing = True
        self.daemon.terminate()
        code = self.daemon.wait_end(30)
        self._thread.join(30)
        self._look_at_the_log()
        return code

    def kill(self) -> None:
        """End everything that was started, whatever state it is in."""
        self._closing = True
        self._thread.join(30)
        self.seen |= set(children(self.daemon.pid))
        self.daemon.kill()
        for pid in self.seen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self) -> RunningDaemon:
        daemon = RunningDaemon(
            self._endpoint, "chaos_model:Chaos", *OPTIONS, folder=self._folder, PYTHONDONTWRITEBYTECODE="1"
        )
        self.seen.add(daemon.pid)
        return daemon

    def _keep(self) -> None:
        while not self._closing:
            code = self.daemon.process.poll()
            if code is None:
                time.sleep(0.02)
                continue
            self.ended.append(code)
            self._look_at_the_log()
            self.daemon.kill()
            time.sleep(RESTART_S)
            self.daemon = self._start()

    def _look_at_the_log(self) -> None:
        log = self.daemon.log
        if "Traceback" in log or "defect" in log:
            self.tracebacks.append(log[-4000:])


def gunicorn(endpoint: str) -> RunningGunicorn:
    """Gunicorn as shipped, with several workers of several threads."""
    # Gunicorn waits that long for a worker that is told to end before it listens to signals.
    options = (*CLASSES["gthread"], "--graceful-timeout", "3", "--timeout", "30")
    return RunningGunicorn(endpoint, *options, workers=WORKERS)


def open_files(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def all_gone(pids: set[int]) -> None:
    """Fail unless every process ends by itself within two seconds."""
    until(lambda: not any(map(alive, pids)), f"the end of {sorted(filter(alive, pids))}", 2.0)
