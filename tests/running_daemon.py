"""A real `gpu-server start` in a process of its own, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import zmq

from gpu_server.client import Client
from gpu_server.errors import DeadlineExceeded, Unavailable
from gpu_server.wire.documents import Status

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("SERVER_PYTHON", sys.executable)
"""The interpreter of the servers; tests of client packages run in an environment of their own."""
COMMAND = Path(PYTHON).with_name("gpu-server")
MODELS = ROOT / "tests" / "integration" / "models"
WAIT_S = 60.0


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without settings, importing from this checkout, one CPU thread in the engine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GPU_SERVER_")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "GPU_SERVER_THREADS": "1"} | extra


def until(condition: Callable[[], object], what: str, wait_s: float = WAIT_S, every_s: float = 0.02) -> None:
    """Poll until `condition()` holds; fails the test after `wait_s`, of which a stall of the machine takes a second."""
    waited, looked = 0.0, time.monotonic()
    while not condition():
        assert waited < wait_s, f"not within {wait_s} s: {what}"
        time.sleep(every_s)
        now = time.monotonic()
        waited += min(now - looked, 1.0)
        looked = now


def children(pid: int) -> list[int]:
    """Child processes of a process, from /proc."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return [
            int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()
        ]
    return []


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = re.search(r"^State:\s+(\w)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state is not None and state[1] not in "ZX"


class RunningDaemon:
    """`gpu-server start ARGUMENTS`, its client and its log. `folder` is searched for model modules.

    installed: by the installed command and without PYTHONPATH, as users start it; else from this checkout.
    descriptors: how many it may open, if not as many as the tests.
    """

    def __init__(
        self,
        endpoint: str,
        *arguments: str,
        folder: Path = MODELS,
        installed: bool = False,
        descriptors: int = 0,
        **env: str,
    ) -> None:
        self.endpoint = endpoint
        self._log = tempfile.NamedTemporaryFile("w+", prefix="gs-log-")  # noqa: SIM115 - lives as long as the daemon
        command = [str(COMMAND)] if installed else [PYTHON, "-m", "gpu_server"]
        if descriptors:
            command = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *command]
        path = {"PYTHONPATH": ""} if installed else {}
        self.process = subprocess.Popen(
            [*command, "start", *arguments],
            cwd=folder,
            env=clean_environment(GPU_SERVER_ENDPOINT=endpoint, **path, **env),
            stderr=self._log,
        )
        self.client = Client(endpoint, timeout_s=30)

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written so far."""
        return Path(self._log.name).read_text()

    def status(self) -> Status | None:
        """Its status; None while nobody answers."""
        try:
            return self.client.status()
        except (DeadlineExceeded, Unavailable):
            return None

    def engine_pid(self) -> int:
        """The engine's process id."""
        return self.client.status().engines[0].pid

    def wait_ready(self) -> RunningDaemon:
        """Return once models are served."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the daemon ended: {self.log}"
            status = self.status()
            return status is not None and status.state == "ready"

        until(ready, "ready", every_s=0.05)
        return self

    def wait_end(self, wait_s: float = WAIT_S) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(wait_s)

    def terminate(self) -> None:
        """Ask it to drain and stop."""
        self.process.send_signal(signal.SIGTERM)

    def raw_socket(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        """A DEALER connected to it, for messages that no client would send."""
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self.endpoint)
        return socket

    def kill(self) -> None:
        """End it and everything it started, whatever state it is in."""
        self.client.close()
        family = [self.pid, *children(self.pid)]
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        for pid in family[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._log.close()


StartDaemon = Callable[..., RunningDaemon]
"""The fixture `daemon`: arguments of `start`, and `folder` or variables by keyword."""
