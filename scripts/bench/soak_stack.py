"""What scripts/bench/soak.py puts under load: a daemon, Gunicorn before it, and reloads now and then."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gpu_server import Client, RemoteError

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 600.0


@dataclass
class Stack:
    """A daemon and Gunicorn before it, which both write to `log`."""

    endpoint: str
    url: str
    folder: Path
    daemon: int
    gunicorn: int
    log: Path


def started(options: argparse.Namespace, exits: ExitStack) -> Stack:
    """Start the daemon, wait until it is ready, then Gunicorn; both end with `exits`."""
    folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="gs-")))
    endpoint, log = f"ipc://{folder}/s", folder / "log"
    environment = os.environ | {"GPU_SERVER_ENDPOINT": endpoint}
    sink = exits.enter_context(log.open("w"))

    def run(*arguments: str, fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=sink, pass_fds=fds)
        exits.callback(end, process)
        return process

    model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    daemon = run("gpu_server", "start", *([model] if options.model else []))
    with Client(endpoint, timeout_s=5) as client:
        wait(lambda: client.status().state == "ready", daemon, log)
    listener = exits.enter_context(socket.create_server(("127.0.0.1", 0)))
    bind = f"fd://{listener.fileno()}"
    web = run("gunicorn", "-w", str(options.workers), "-b", bind, "web:app", fds=[listener.fileno()])
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/embed"
    return Stack(endpoint, url, folder, daemon.pid, web.pid, log)


def wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until the daemon is ready; exits with its log if it never is."""
    give_up = time.monotonic() + START_LIMIT_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if ready():
                return
        except RemoteError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the daemon did not start:\n{log.read_text()[-3000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make sure that it has."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Reloads:
    """`gpu-server reload`, run again and again; `done` has the seconds that each took, its exit code and its words."""

    def __init__(self, stack: Stack, every_s: float) -> None:
        self.done: list[tuple[float, int, str]] = []
        self._stack = stack
        self._every_s = every_s
        self._due_s = self._ends_s = self._begun_s = 0.0
        self._running: subprocess.Popen[str] | None = None

    def begin(self, begins_s: float, ends_s: float) -> None:
        """The first is due one interval after the beginning, the last one interval before the end."""
        self._due_s, self._ends_s = begins_s + self._every_s, ends_s

    def poll(self) -> bool:
        """Take in the end of one, begin the next when it is due; whether one runs, or did until now."""
        ran = self._running is not None
        if self._running is not None and self._running.poll() is not None:
            self._note(self._running)
        now = time.monotonic()
        last_s = self._ends_s - self._every_s
        if self._running is None and self._every_s and self._due_s <= min(now, last_s):
            self._due_s += self._every_s
            self._begun_s = now
            command = [sys.executable, "-m", "gpu_server", "reload", "--endpoint", self._stack.endpoint]
            self._running = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        return ran or self._running is not None

    def finish(self) -> list[tuple[float, int, str]]:
        """Wait for the one that runs; all that were done."""
        if self._running is not None:
            self._running.wait(START_LIMIT_S)
            self._note(self._running)
        return self.done

    def _note(self, process: subprocess.Popen[str]) -> None:
        said = process.communicate()[1].strip()
        self.done.append((time.monotonic() - self._begun_s, process.returncode, said))
        self._running = None
