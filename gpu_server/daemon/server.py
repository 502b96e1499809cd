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

from gpu_server import curve, source
from gpu_server import endpoint as endpoints
from gpu_server._version import __version__
from gpu_server.config import Config
from gpu_server.daemon import descriptors, model_set
from gpu_server.daemon.alarm import Alarm
from gpu_server.daemon.change import Models
from gpu_server.daemon.control import Control
from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.heartbeat import Heartbeat
from gpu_server.daemon.instance import Instance
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.router import RETRY_S, Router
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.daemon.scrape import ScrapePort
from gpu_server.daemon.service import Service
from gpu_server.daemon.supervisor import Supervisor
from gpu_server.daemon.systemd import Listener, Notifier
from gpu_server.daemon.text import TextPool
from gpu_server.daemon.view import View
from gpu_server.daemon.zap import Authenticator
from gpu_server.errors import ConfigError, EngineStartFailed, ShuttingDown
from gpu_server.wire import Limits, document
from gpu_server.wire.documents import Status, to_json
from gpu_server.wire.events import EngineSpec

log = logging.getLogger(__name__)

STOP_LINGER_MS = 500
GC_THRESHOLD = 50_000
READ_WRITE = int(zmq.POLLIN | zmq.POLLOUT)
NEVER = 0

OnStatus = Callable[[Status], None]


class Daemon:
    """One daemon. `run` returns the exit code; SIGTERM or SIGINT drains, a second one leaves at once.

    on_status: called with the status document when state, phase or progress change (a progress bar).
    notifier: the service manager to keep informed. listener: the daemon's socket, where a manager has opened it.
    Raises ConfigError, AlreadyRunning or EngineStartFailed from `run` when it cannot serve.
    """

    def __init__(
        self,
        config: Config,
        on_status: OnStatus | None = None,
        notifier: Notifier | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._config = config
        self._models = model_set.from_config(config.models)
        self._on_status = on_status
        self._shown: tuple[object, ...] = ()
        self._clock = time.monotonic
        self._signals = 0
        self._hung_up = False
        self._drain_until: float | None = None
        self._metrics = Metrics()
        self._limits = Limits(
            max_frame_bytes=config.limits.max_frame_bytes,
            max_request_bytes=config.limits.max_request_bytes,
            max_items=config.limits.max_items,
            max_text_bytes=config.limits.max_text_bytes,
        )
        self._listener = listener
        self._heartbeat = Heartbeat(notifier or Notifier(), self._clock, config.server.drain_timeout_s)
        self.endpoint = _endpoint(config.server.endpoint, listener)
        self._keys = curve.for_server(config.server, self.endpoint)

    def run(self) -> int:
        """Serve until stopped."""
        for model in self._models:
            source.check(model.source)
        self._instance = Instance(self.endpoint, adopted=self._listener is not None)
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
        descriptors.raise_limit()
        self._open_service()
        self._open_supervision()
        self._open_poller()
        self._take_signals()
        log.info("serving", extra={"endpoint": self.endpoint, "pid": os.getpid(), "version": __version__})
        self._supervisor.start()
        self._watch_engines()
        # Requests hold no cycles, so reference counts free them; collections would only walk the queue.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 50, 100)

    def _open_service(self) -> None:
        """The clients' socket, and what becomes of their requests."""
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
        self._open_router()
        self._service = Service(
            self._scheduler,
            self._metrics,
            self._limits,
            self._clock,
            self._router.send,
            lambda peer, header, inputs: self._view.answer(peer, header, inputs),
            self._text,
            default_deadline_s=self._config.limits.default_deadline_ms / 1e3,
            batches_in_flight=self._config.engine.batches_in_flight,
            max_early_bytes=self._config.limits.max_queue_bytes if self._waits_for_load() else 0,
        )

    def _open_router(self) -> None:
        """The socket, and before it who decides on its connections."""
        keys = self._keys
        self._authenticator = Authenticator(self._context, keys.clients, self._metrics) if keys else None
        self._router = Router(
            self._context,
            self.endpoint,
            self._limits,
            self._metrics,
            max_peer_bytes=self._config.limits.max_peer_bytes,
            on_gone=lambda peer: self._view.peer_gone(peer),
            listener_fd=self._listener.fd if self._listener is not None else None,
            secret_key=keys.secret if keys else None,
        )
        self._instance.secure_socket()

    def _open_supervision(self) -> None:
        """The engines' keeper, and who may look at it and tell it what to do."""
        self._supervisor = Supervisor(
            self._spawn_engine,
            self._clock,
            self._models,
            load_timeout_s=self._config.engine.load_timeout_s,
            batch_timeout_s=self._config.engine.batch_timeout_s,
            on_ready=self._service.engine_ready,
            on_lost=self._service.engine_lost,
            on_hold=self._service.hold,
        )
        self._view = View(
            self._config,
            self.endpoint,
            self._clock,
            self._metrics,
            self._limits,
            self._router,
            self._scheduler,
            self._service,
            self._supervisor,
        )
        port = self._config.server.metrics_port
        self._scrape = ScrapePort(port, self._wake) if port else None
        self._control = Control(
            self._context,
            self._instance.control_endpoint,
            self._supervisor,
            self._clock,
            document=lambda: document("document", to_json(self._view.status()).decode()),
            on_drain=self._on_drain,
            owners=(os.geteuid(), 0),
        )

    def _open_poller(self) -> None:
        """All that the loop waits for; engines come and go in `_watch_engines`."""
        self._poller = zmq.Poller()
        self._poller.register(self._router.socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._poller.register(self._router.peers.monitor, zmq.POLLIN)
        self._poller.register(self._control.socket, zmq.POLLIN)
        if self._authenticator is not None:
            self._poller.register(self._authenticator.socket, zmq.POLLIN)
        self._links: tuple[EngineLink, ...] = ()
        self._watched: list[int] = []
        self._channels: list[int] = []

    def _take_signals(self) -> None:
        """Each signal wakes the loop, which then looks at what it has noted."""
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_hangup)
        self._alarm = Alarm(self._clock)

    def _main_loop(self) -> None:
        service, router, supervisor = self._service, self._router, self._supervisor
        while not self._finished():
            self._watch_channels()
            events = dict(self._poller.poll(self._timeout_ms()))
            if router.socket in events:
                router.receive(service.handle)
            if self._authenticator is not None and self._authenticator.socket in events:
                self._authenticator.receive()
            if self._router.peers.monitor in events:
                self._router.peers.poll()
            if self._wake_read.fileno() in events:
                with suppress(BlockingIOError):
                    self._wake_read.recv(4096)
                self._text.collect()
                if self._scrape is not None:
                    self._scrape.collect(self._view.metrics)
            for link in supervisor.links:
                if link.channel.fileno() in events:
                    link.receive(service.batch_done)
            self._hear_owner(events)
            if self._engine_spoke(events):
                supervisor.poll()
                self._report()
            if supervisor.links is not self._links:
                self._watch_engines()
            now = self._clock()
            if now >= self._heartbeat.due:
                self._beat()
            if now >= self._view.due:
                self._view.tick()
            service.expire()
            self._alarm.set(service.dispatch())
            router.flush()

    def _hear_owner(self, events: dict[object, int]) -> None:
        """Take in verbs of the control socket, and a hang-up, which asks for a reload."""
        if self._control.socket in events:
            self._control.receive()
        if self._hung_up:
            self._hung_up = False
            self._control.reload()
        self._control.expire()

    def _engine_spoke(self, events: dict[object, int]) -> bool:
        """Whether the engine's pipe, exit or a timer calls for the supervisor: asking costs system calls."""
        timer = self._supervisor.next_timer()
        if timer is not None and self._clock() >= timer:
            return True
        return self._supervisor.pressing() or any(fd in events for fd in self._watched)

    def _shutdown(self) -> None:
        log.info("stopping", extra={"open_requests": self._service.open_requests})
        self._alarm.set(None)
        signal.set_wakeup_fd(-1)
        self._service.fail_all(ShuttingDown("the server stopped before this request was answered"))
        self._router.flush()
        if self._signals < 2:
            self._router.hand_over(self._service.handle, self._service.farewell())
        if self._authenticator is not None:
            self._authenticator.close()
        self._router.close(STOP_LINGER_MS)
        if self._scrape is not None:
            self._scrape.close()
        self._control.close(STOP_LINGER_MS)
        self._supervisor.stop()
        self._text.close()
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
            self._service.stop(successor=self._listener is not None)
            self._control.stop()
            log.info("draining", extra={"open_requests": self._service.open_requests})
            self._beat()
        idle = not self._service.open_requests and not self._router.has_unsent()
        return idle or self._clock() >= self._drain_until

    def _timeout_ms(self) -> int:
        now = self._clock()
        timers = [
            self._service.next_deadline(),
            self._supervisor.next_timer(),
            self._control.next_deadline(),
            self._drain_until,
            self._heartbeat.due,
            self._view.due,
        ]
        if self._router.has_unsent():
            timers.append(now + RETRY_S)
        return max(0, math.ceil((min(t for t in timers if t is not None) - now) * 1000))

    def _spawn_engine(self, models: Models, device: str, gentle: bool) -> EngineLink:
        engine = self._config.engine
        spec = EngineSpec(
            device=device or engine.device,
            threads=engine.threads,
            max_memory_mb=engine.max_memory_mb,
            max_batch_tokens=engine.max_batch_tokens,
            max_batch_items=engine.max_batch_items,
            batches_in_flight=engine.batches_in_flight,
            max_batch_bytes=self._config.limits.max_queue_bytes,
            graphs=engine.graphs,
            compiled=engine.compile,
            fused=engine.fused,
            log_level=self._config.server.log_level,
            log_format=self._config.server.log_format,
            models=models,
            gentle=gentle,
        )
        return EngineLink(spec)

    def _watch_engines(self) -> None:
        """Poll the engines' pipes, exits and channels, and no others."""
        for watched in (*self._watched, *self._channels):
            self._poller.register(watched, NEVER)
        self._links = self._supervisor.links
        self._watched = [fd for link in self._links for fd in link.filenos()]
        self._channels = [link.channel.fileno() for link in self._links]
        for watched in self._watched:
            self._poller.register(watched, zmq.POLLIN)

    def _watch_channels(self) -> None:
        """Poll for answers, and for room where a batch has not gone in whole, until the engine is gone."""
        for link, descriptor in zip(self._links, self._channels, strict=True):
            channel = link.channel
            events = READ_WRITE if channel.unsent else zmq.POLLIN
            self._poller.register(descriptor, NEVER if channel.closed else events)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self._hung_up = True

    def _on_drain(self, refuse: bool) -> None:
        self._service.draining = refuse
        self._report()

    def _wake(self) -> None:
        with suppress(BlockingIOError, OSError):
            self._wake_write.send(b"\0")

    def _report(self) -> None:
        """Tell `on_status` when something visible has changed; keep the phase for `model_loading` errors."""
        link = self._supervisor.link or self._supervisor.successor
        event = link.event if link is not None else None
        seen = (self._view.state(), event and event.phase, event and round(event.progress, 2))
        if seen != self._shown:
            self._shown = seen
            self._service.phase = event.phase if event is not None else "engine is being respawned"
            if self._on_status is not None:
                self._on_status(self._view.status())
            self._beat()

    def _waits_for_load(self) -> bool:
        asked = self._config.server.while_loading
        return asked == "wait" or (asked == "auto" and self._listener is not None)

    def _beat(self) -> None:
        if math.isfinite(self._heartbeat.due):
            self._heartbeat.beat(
                self._view.status(),
                self._supervisor.next_timer(),
                stopping=self._drain_until is not None,
                reloading=self._supervisor.changing,
            )


def _endpoint(named: str, listener: Listener | None) -> str:
    """Where to serve: the inherited socket, else what is configured, else the default place."""
    if listener is None:
        return named or endpoints.server_default()
    if named not in ("", listener.endpoint):
        raise ConfigError(f"server.endpoint is {named} but the socket unit listens at {listener.endpoint}")
    return listener.endpoint
