"""A real `gunicorn web:app` in processes of its own, and HTTP over its Unix socket, for tests."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from running_daemon import PYTHON, ROOT, alive, children, clean_environment, until

WAIT_S = 30.0
CLASSES = {
    "sync": ("-k", "sync", "--threads", "1"),
    "gthread": ("-k", "gthread", "--threads", "8"),
    "gevent": ("-k", "gevent"),
}
"""Options for each worker class."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; opens again by itself where the server closes."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=WAIT_S)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(self._path)


class RunningGunicorn:
    """`gunicorn web:app` as this project sets it up, on a Unix socket and a free port; use as a context manager.

    Options are Gunicorn's. `url` is the port's address, `log` holds its lines, `served_by` the worker of each request.
    """

    def __init__(
        self,
        endpoint: str,
        *options: str,
        workers: int = 2,
        app: str = "web:app",
        cwd: Path = ROOT,
        **env: str,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gw-")
        self._access = Path(self._folder.name) / "access"
        self._count = workers
        self.path = f"{self._folder.name}/http.sock"
        self.log: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        binds = ["-b", f"unix:{self.path}", "-b", "127.0.0.1:0", "-w", str(workers)]
        access = ["--access-logfile", str(self._access), "--access-logformat", "%(p)s"]
        clean = clean_environment(GPU_SERVER_ENDPOINT=endpoint, **env)
        self.process = subprocess.Popen(
            [PYTHON, "-m", "gunicorn", *binds, *access, *options, app],
            cwd=cwd,
            env={k: v for k, v in clean.items() if not k.startswith(("GUNICORN_", "WEB_CON"))},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, words: str) -> str:
        """The next line of the log that holds `words`."""
        give_up = time.monotonic() + WAIT_S
        while words not in (line := self._lines.get(timeout=max(0.01, give_up - time.monotonic()))):
            pass
        return line

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return children(self.process.pid)

    def served_by(self) -> list[int]:
        """Process id of the worker that answered, for each answered request."""
        return [int(line.strip("<>")) for line in self._access.read_text().split()]

    def ask_every_worker(self, method: str, path: str, body: Any = None) -> None:
        """The same request until each worker has answered it: one that still loads the app leaves it to the others."""

        def all_have() -> bool:
            with ThreadPoolExecutor(4 * self._count) as pool:
                statuses = pool.map(lambda _: self.ask(method, path, body)[0], range(4 * self._count))
                assert set(statuses) == {200}
            return set(self.served_by()) >= set(self.workers())

        until(all_have, "every worker's turn")

    def ask(
        self, method: str, path: str, body: Any = None, to: http.client.HTTPConnection | None = None
    ) -> tuple[int, Any]:
        """Status and decoded JSON (or text) of one request; a body of bytes is sent as it is, any other as JSON."""
        connection = to or UnixConnection(self.path)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            # A server that refuses a body answers, and closes, before it has read all of it.
            with suppress(BrokenPipeError):
                connection.request(method, path, data, {"content-type": "application/json"})
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            if to is None:
                connection.close()
        is_json = answer.headers.get_content_subtype() == "json"
        return answer.status, json.loads(raw) if is_json else raw.decode()

    def stop(self, wait_s: float = WAIT_S) -> int:
        """Ask it to finish what it has and end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(wait_s)

    def __enter__(self) -> RunningGunicorn:
        try:
            self.url = re.findall(r"https?://[0-9.:]+", self.wait_for("Listening at"))[0]
            for _ in range(self._count):
                self.wait_for("Booting worker")
        except queue.Empty:
            self.kill()
            raise AssertionError(f"Gunicorn did not start: {''.join(self.log)}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.stop()
        self.kill()

    def kill(self) -> None:
        """End it and its workers, whatever state they are in."""
        family = [self.process.pid, *self.workers()]
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        for pid in family[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(alive, family)), "the workers' end")
        self._reader.join(WAIT_S)
        self._folder.cleanup()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            self._lines.put(line)
        self.process.stderr.close()
