"""A daemon that serves the oracle model from a folder of its own, callers that check every answer, and the owner's verbs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from running_daemon import MODELS, ROOT, RunningDaemon, StartDaemon, clean_environment, until

from gpu_server.client import Client
from gpu_server.connection import Reply
from gpu_server.daemon.instance import control_endpoint
from gpu_server.errors import RemoteError

MODEL = "oracle_model:Oracle"
ITEMS = 40
"""Items of a caller's request: more than one batch holds, so that a swap can come in its middle."""


class Oracle:
    """`settings.json` beside a copy of the model, and the daemon that serves it."""

    def __init__(self, folder: Path, daemon: StartDaemon, *models: str, **settings: Any) -> None:
        self.folder = folder
        shutil.copy(MODELS / "oracle_model.py", folder)
        self.set(version=1, **settings)
        self.daemon: RunningDaemon = daemon(*(models or (MODEL,)), folder=folder).wait_ready()
        self.control = Client(control_endpoint(self.daemon.endpoint), timeout_s=60)

    def set(self, **settings: Any) -> None:
        """What the next engine reads. The module's time changes too: that is what a model's version is made of."""
        (self.folder / "settings.json").write_text(json.dumps(settings))
        module = self.folder / "oracle_model.py"
        module.write_text(module.read_text().partition("\n# ")[0] + f"\n# {settings}\n")

    def touch(self, name: str) -> None:
        (self.folder / name).touch()

    def verb(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`gpu-server ARGUMENTS`, from another folder than the daemon's."""
        return subprocess.run(
            [sys.executable, "-m", "gpu_server", *arguments],
            cwd=ROOT, env=clean_environment(GPU_SERVER_ENDPOINT=self.daemon.endpoint), capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip

    def loading_pid(self) -> int:
        """The process that loads beside the serving engine, once it has begun to."""
        serving = self.daemon.engine_pid()

        def found() -> list[int]:
            pids = [int(path.name.partition("-")[2]) for path in self.folder.glob("loading-*")]
            return [pid for pid in pids if pid > 0 and pid != serving and Path(f"/proc/{pid}").exists()]

        until(found, "a second engine loads")
        return found()[0]

    def ask(self, *values: int, model: str = "", gate: str = "") -> Reply:
        return self.daemon.client.infer_request(model, {"x": list(values)}, params={"gate": gate})

    def version(self) -> int:
        """The version that answers now."""
        return version_of(self.ask(5))


def version_of(reply: Reply) -> int:
    """Which version a reply says it is from; each of its rows must say the same."""
    (version,) = set(reply.outputs["v"].to_numpy().tolist())
    return int(version)


class Load:
    """Callers that never stop asking. `wrong` and `errors` stay empty; `versions` is what each version called itself."""

    def __init__(self, oracle: Oracle, threads: int = 3) -> None:
        self._oracle = oracle
        self.answered = 0
        self.errors: list[RemoteError] = []
        self.wrong: list[object] = []
        self.versions: dict[int, set[str]] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def _run(self, thread: int) -> None:
        value = (thread + 1) * 1_000_000
        while not self._stop.wait(0.002):
            value += ITEMS
            values = range(value, value + ITEMS)
            try:
                reply = self._oracle.ask(*values)
            except RemoteError as error:
                self.errors.append(error)
                continue
            right = [2 * x + 1 for x in values]
            found = set(reply.outputs["v"].to_numpy().tolist())
            if reply.outputs["y"].to_numpy().tolist() != right or len(found) != 1:
                self.wrong.append((value, found))
            self.versions.setdefault(found.pop(), set()).add(reply.header.version)
            self.answered += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def more(self) -> None:
        """Return once 20 more answers have come."""
        target = self.answered + 20
        until(lambda: self.answered >= target or self.errors, "20 more answers")

    def assert_clean(self) -> None:
        assert (self.errors, self.wrong) == ([], [])
