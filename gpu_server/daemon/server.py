"""The daemon process: builds the parts, then startup, main_loop, shutdown. One thread, one poller, no torch."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket as sockets
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import zmq

from gpu_server import endpoint as endpoints
from gpu_server import source
from gpu_server._version import __version__
from gpu_server.config import Config, ModelConfig
from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.instance import Instance
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.router import RETRY_S, Router
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.daemon.service import Service
from gpu_server.daemon.supervisor import Supervisor
from gpu_server.daemon.text import TextPool
from gpu_server.errors import ConfigError, EngineStartFailed, ShuttingDown
from gpu_server.wire import Limits, Tensors, document
from gpu_server.wire.documents import Hello, QueueStatus, State, Status, to_json
from gpu_server.wire.events import EngineSpec, ModelSpec

log = logging.getLogger(__name__)

STOP_LINGER_MS = 500
IDLE_POLL_S = 60.0
TURNS_PER_POLL = 32
GC_THRESHOLD = 50_000

OnStatus = Callable[[Status], None]


class Daemon:
    """One daemon. `run` returns the exit code; SIGTERM or SIGINT drains, a second one leaves at once.

    on_status: called with the status document when state, phase or progress change (a progress bar, a service manager).
    Raises ConfigError, AlreadyRunning or EngineStartFailed from `run` when it cannot serve.
    """

    def __init__(self, config: Config, on_status: OnStatus | None = None) -> None:
        self._config = config
        self._models = _model_specs(config.models)
        self._on_status = on_status
        self._shown: tuple[object, ...] = ()
        self._clock = time.monotonic
        self._started = self._clock()
        self._signals = 0
        self._turns = 0
        self._drain_until: float | None = None
        self._metrics = Metrics()
        self._limits = Limits(
            max_frame_bytes=config.limits.max_frame_bytes,
            max_request_bytes=config.limits.max_request_bytes,
            max_items=config.limits.max_items,
            max_text_bytes=config.limits.max_text_bytes,
        )
        self.endpoint = config.server.endpoint or endpoints.server_default()

    def run(self) -> int:
        """Serve until stopped."""
        for model in self._models:
            source.check(model.source)
        self._instance = Instance(self.endpoint)
        try:
            self._startup()
            try:
                self._main_loop()
            finally:
                self._shutdown()
        finally:
            self._instance.release()
        if self._supervisor.failure:
            raise EngineStartFailed(self._supervisor.failure, self._supervisor.exit_code)
        return 0

    def _startup(self) -> None:
        self._context = zmq.Context()
        self._wake_read, self._wake_write = sockets.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._text = TextPool(self._wake)
        self._scheduler = Scheduler(
            self._clock,
            max_items=self._config.limits.max_queue_items,
            max_bytes=self._config.limits.max_queue_bytes,
        )
        self._router = Router(
            self._context,
            self.endpoint,
            self._limits,
            self._metrics,
            max_peer_bytes=self._config.limits.max_peer_bytes,
            on_gone=lambda peer: self._service.peer_gone(peer),
        )
        self._instance.secure_socket()
        self._service = Service(
            self._scheduler,
            self._metrics,
            self._limits,
            self._clock,
            self._router.send,
            self._documents,
            self._text,
            default_deadline_s=self._config.limits.default_deadline_ms / 1e3,
            batches_in_flight=self._config.engine.batches_in_flight,
        )
        self._supervisor = Supervisor(
            self._spawn_engine,
            self._clock,
            load_timeout_s=self._config.engine.load_timeout_s,
            batch_timeout_s=self._config.engine.batch_timeout_s,
            on_ready=self._engine_ready,
            on_lost=self._engine_lost,
        )
        self._poller = zmq.Poller()
        self._poller.register(self._router.socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._poller.register(self._router.peers.monitor, zmq.POLLIN)
        self._watched: list[int] = []
        self._watched_socket: list[zmq.Socket[bytes]] = []
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        log.info("serving", extra={"endpoint": self.endpoint, "pid": os.getpid(), "version": __version__})
        self._supervisor.start()
        self._watch_engine()
        # Requests hold no cycles, so reference counts free them; collections would only walk the queue.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 50, 100)

    def _main_loop(self) -> None:
        service, router, supervisor = self._service, self._router, self._supervisor
        idle = True
        while not self._finished():
            events = self._wait(idle)
            received = router.receive(service.handle)
            if self._router.peers.monitor in events:
                self._router.peers.poll()
            if self._wake_read.fileno() in events:
                with suppress(BlockingIOError):
                    self._wake_read.recv(4096)
                self._text.collect()
            link = supervisor.link
            answered = link.receive(service.batch_done) if link is not None else 0
            idle = not received and not answered
            if self._engine_spoke(events):
                supervisor.poll()
                if supervisor.link is not link:
                    self._watch_engine()
                self._report()
            service.expire()
            service.dispatch()
            router.flush()

    def _wait(self, idle: bool) -> dict[object, int]:
        """Wait for something to do; the sources that have it.

        After a turn that had messages the sockets are simply tried again: a poll costs ten such tries, and under load
        there is always another message.
        """
        self._turns += 1
        if not idle and self._turns % TURNS_PER_POLL:
            return {}
        return dict(self._poller.poll(self._timeout_ms() if idle else 0))

    def _engine_spoke(self, events: dict[object, int]) -> bool:
        """Whether the engine's pipe, exit or a timer calls for the supervisor: asking costs system calls."""
        timer = self._supervisor.next_timer()
        if timer is not None and self._clock() >= timer:
            return True
        return self._supervisor.state == "loading" or any(fd in events for fd in self._watched)

    def _shutdown(self) -> None:
        log.info("stopping", extra={"open_requests": self._service.open_requests})
        signal.set_wakeup_fd(-1)
        self._service.fail_all(ShuttingDown("the server stopped before this request was answered"))
        self._router.flush()
        self._supervisor.stop()
        self._text.close()
        self._router.close(STOP_LINGER_MS)
        self._context.term()
        self._wake_read.close()
        self._wake_write.close()

    def _finished(self) -> bool:
        if self._supervisor.state == "failed" or self._signals > 1:
            return True
        if self._drain_until is None:
            if not self._signals:
                return False
            self._drain_until = self._clock() + self._config.server.drain_timeout_s
            self._service.draining = True
            log.info("draining", extra={"open_requests": self._service.open_requests})
        idle = not self._service.open_requests and not self._router.has_unsent()
        return idle or self._clock() >= self._drain_until

    def _timeout_ms(self) -> int:
        now = self._clock()
        timers = [
            now + IDLE_POLL_S,
            self._service.next_deadline(),
            self._supervisor.next_timer(),
            self._drain_until,
        ]
        if self._router.has_unsent():
            timers.append(now + RETRY_S)
        return max(0, math.ceil((min(t for t in timers if t is not None) - now) * 1000))

    def _spawn_engine(self, number: int) -> EngineLink:
        engine = self._config.engine
        spec = EngineSpec(
            endpoint=self._instance.engine_endpoint(number),
            device=engine.device,
            threads=engine.threads,
            max_batch_tokens=engine.max_batch_tokens,
            max_batch_items=engine.max_batch_items,
            batches_in_flight=engine.batches_in_flight,
            max_batch_bytes=self._config.limits.max_queue_bytes,
            graphs=engine.graphs,
            compiled=engine.compile,
            fused=engine.fused,
            log_level=self._config.server.log_level,
            log_format=self._config.server.log_format,
            models=self._models,
        )
        return EngineLink(self._context, spec)

    def _watch_engine(self) -> None:
        """Poll the current engine's pipe, exit and socket, and no other's."""
        for watched in (*self._watched, *self._watched_socket):
            self._poller.unregister(watched)
        link = self._supervisor.link
        self._watched = link.filenos() if link is not None else []
        self._watched_socket = [link.socket] if link is not None else []
        for watched in (*self._watched, *self._watched_socket):
            self._poller.register(watched, zmq.POLLIN)

    def _engine_ready(self, link: EngineLink) -> None:
        self._service.engine_ready(link)

    def _engine_lost(self, link: EngineLink) -> None:
        self._service.engine_lost(link)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            self._wake_write.send(b"\0")

    def _state(self) -> State:
        if self._supervisor.state == "failed":
            return "failed"
        if self._service.draining:
            return "draining"
        if self._supervisor.state == "ready":
            return "ready"
        return "degraded" if self._service.models else "loading"

    def _status(self) -> Status:
        engine = self._supervisor.status()
        state = self._state()
        return Status(
            version=__version__,
            pid=os.getpid(),
            endpoint=self.endpoint,
            state=state,
            phase=engine.phase if engine is not None and state != "ready" else "",
            progress=1.0 if state == "ready" else engine.progress if engine is not None else 0.0,
            uptime_s=round(self._clock() - self._started, 3),
            engines=(engine,) if engine is not None else (),
            models=tuple(self._service.models.values()),
            queue=QueueStatus(
                requests=self._scheduler.requests,
                items=self._scheduler.items,
                tokens=self._scheduler.queued_tokens(),
                bytes=self._scheduler.bytes,
            ),
            counters=self._metrics.counters(),
        )

    def _report(self) -> None:
        """Tell `on_status` when something visible has changed; keep the phase for `model_loading` errors."""
        link = self._supervisor.link
        event = link.event if link is not None else None
        seen = (self._state(), event and event.phase, event and round(event.progress, 2))
        if seen != self._shown:
            self._shown = seen
            self._service.phase = event.phase if event is not None else "engine is being respawned"
            if self._on_status is not None:
                self._on_status(self._status())

    def _documents(self, operation: str) -> Tensors:
        if operation == "status":
            return document("document", to_json(self._status()).decode())
        if operation == "hello":
            hello = Hello(
                version=__version__,
                state=self._state(),
                limits=self._limits,
                default_deadline_ms=self._config.limits.default_deadline_ms,
                models=tuple(self._service.models.values()),
            )
            return document("document", to_json(hello).decode())
        return document("metrics", self._metrics.render(self._gauges()))

    def _gauges(self) -> dict[str, tuple[str, float]]:
        link = self._supervisor.link
        return {
            "ready": ("1 when a loaded engine takes batches", float(self._state() == "ready")),
            "uptime_seconds": ("seconds since the daemon started", self._clock() - self._started),
            "queue_requests": ("requests not yet answered", self._scheduler.requests),
            "queue_items": ("items waiting for a batch", self._scheduler.items),
            "queue_tokens": ("cost of the waiting items", self._scheduler.queued_tokens()),
            "queue_bytes": ("bytes of input held", self._scheduler.bytes),
            "batches_in_flight": ("batches the engine has", len(link.batches) if link is not None else 0),
            "engine_restarts": ("engine processes started after the first", self._supervisor.restarts),
        }


def _model_specs(models: tuple[ModelConfig, ...]) -> tuple[ModelSpec, ...]:
    """The models to load, each under a name of its own; raises ConfigError on a name used twice."""
    specs = []
    for model in models or (ModelConfig(),):
        specs.append(
            ModelSpec(
                name=model.name or source.name_of(model.source),
                source=model.source,
                revision=model.revision,
                dtype=model.dtype,
                pooling=model.pooling,
                max_length=model.max_length,
                max_batch_tokens=model.max_batch_tokens,
                max_batch_items=model.max_batch_items,
            )
        )
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are named {name!r}; give one of them another name")
    return tuple(specs)
