"""A supervisor over links and a clock that do what the test says."""

from __future__ import annotations

import errno
import os
from typing import Any, cast

from daemon_fakes import Clock, FakeLink

from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.request import Batch
from gpu_server.daemon.supervisor import Supervisor
from gpu_server.errors import RemoteError
from gpu_server.wire.documents import ModelInfo
from gpu_server.wire.events import Event, ModelSpec


def specs(*names: str) -> tuple[ModelSpec, ...]:
    return tuple(ModelSpec(name=name, source=f"module:{name}") for name in names)


class World:
    """A supervisor and every link it has asked for; `told` is what its callbacks were called with, in order."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.links: list[FakeLink] = []
        self.devices: list[str] = []
        self.gentle: list[bool] = []
        self.ready: list[FakeLink] = []
        self.lost: list[FakeLink] = []
        self.held = 0
        self.no_process = False
        self.outcomes: list[RemoteError | None] = []
        self.supervisor = Supervisor(
            self._spawn,
            self.clock,
            specs("m"),
            load_timeout_s=60.0,
            batch_timeout_s=30.0,
            on_ready=cast(Any, self.ready.append),
            on_lost=cast(Any, self.lost.append),
            on_hold=self._hold,
        )
        self.supervisor.start()

    def _spawn(self, models: tuple[ModelSpec, ...], device: str, gentle: bool) -> EngineLink:
        if self.no_process:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        link = FakeLink(*(ModelInfo(name=spec.name) for spec in models), pid=100 + len(self.links))
        link.heard = self.clock.now
        self.links.append(link)
        self.devices.append(device)
        self.gentle.append(gentle)
        return cast(EngineLink, link)

    def _hold(self) -> None:
        self.held += 1

    @property
    def link(self) -> FakeLink:
        """The newest engine."""
        return self.links[-1]

    def become_ready(self, device: str = "cuda:0 (NVIDIA H200)") -> None:
        self.link.state = "ready"
        self.link.event = Event(kind="ready", device=device)
        self.supervisor.poll()

    def die(self, code: int = -9, link: FakeLink | None = None) -> None:
        link = link or self.link
        link.state, link.code = "dead", code
        self.supervisor.poll()

    def fail(self, message: str, *, link: FakeLink | None = None, **event: Any) -> None:
        link = link or self.link
        link.state, link.event = "failed", Event(kind="failed", message=message, **event)
        self.supervisor.poll()

    def change(self, *names: str, drain_first: bool = False) -> None:
        self.supervisor.change(specs(*(names or ("m",))), self.outcomes.append, drain_first=drain_first)

    def poll(self, times: int = 1) -> None:
        for _ in range(times):
            self.supervisor.poll()

    def give_batch(self, link: FakeLink) -> None:
        link.batches[b"1"] = Batch(1, "m", {}, self.clock.now)
