"""The daemon process: builds the parts, then startup, loop, shutdown. One thread, no torch."""

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

import msgspec
import zmq

from gpu_server import curve, heap, multipart, source, specs
from gpu_server import endpoint as endpoints
from gpu_server._version import __version__
from gpu_server.config import Config
from gpu_server.daemon import descriptors, identities, model_set
from gpu_server.daemon.alarm import Alarm
from gpu_server.daemon.change import Models
from gpu_server.daemon.control import Control
from gpu_server.daemon.engine_link import EngineLink
from gpu_server.daemon.heartbeat import Heartbeat
from gpu_server.daemon.instance import Instance
from gpu_server.daemon.loop import Loop
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.router import Router
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

log = logging.getLogger(__name__)

STOP_LINGER_MS = 500
GC_THRESHOLD = 50_000

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
        heap.keep()
        identities.seed()
        self._open_service()
        self._open_supervision()
        self._take_signals()
        self._open_loop()
        log.info("serving", extra={"endpoint": self.endpoint, "pid": os.getpid(), "version": __version__})
        self._supervisor.start()
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
            max_answer_bytes=self._config.limits.max_peer_bytes,
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

    def _open_loop(self) -> None:
        """All that the loop waits for; engines come and go in `_attend`."""
        self._rare = [self._router.peers.monitor, self._control.socket]
        if self._authenticator is not None:
            self._rare.append(self._authenticator.socket)
        self._links: tuple[EngineLink, ...] = ()
        self._loop = Loop(
            self._clock,
            self._router,
            self._service,
            self._alarm,
            wake=self._wake_read,
            woken=self._woken,
            rare=[multipart.descriptor(socket) for socket in self._rare],
            pressing=lambda: self._hung_up or self._supervisor.pressing(),
            attend=self._attend,
        )

    def _take_signals(self) -> None:
        """Each signal wakes the loop, which then looks at what it has noted."""
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_hangup)
        self._alarm = Alarm(self._clock)

    def _main_loop(self) -> None:
        while not self._finished():
            self._loop.turn()

    def _attend(self) -> float:
        """See to all that is not a request or an answer; returns when to look again though nothing says so."""
        if self._authenticator is not None:
            self._authenticator.receive()
        self._router.peers.poll()
        self._hear_owner()
        self._supervisor.poll()
        self._report()
        if self._supervisor.links is not self._links:
            self._links = self._supervisor.links
            self._loop.watch(self._links)
        now = self._clock()
        if now >= self._heartbeat.due:
            self._beat()
        if now >= self._view.due:
            self._view.tick()
        # Replies sent since a socket was read may have taken in what its descriptor announced.
        if any(multipart.waits(socket) for socket in self._rare):
            return now
        return self._next_timer()

    def _woken(self) -> None:
        """A thread has finished something, or a signal has come."""
        self._text.collect()
        if self._scrape is not None:
            self._scrape.collect(self._view.metrics)

    def _hear_owner(self) -> None:
        """Take in verbs of the control socket, and a hang-up, which asks for a reload."""
        self._control.receive()
        if self._hung_up:
            self._hung_up = False
            self._control.reload()
        self._control.expire()

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

    def _next_timer(self) -> float:
        timers = [
            self._supervisor.next_timer(),
            self._control.next_deadline(),
            self._drain_until,
            self._heartbeat.due,
            self._view.due,
        ]
        return min(t for t in timers if t is not None)

    def _spawn_engine(self, models: Models, device: str, gentle: bool) -> EngineLink:
        spec = specs.of_engine(self._config, models)
        spec = msgspec.structs.replace(spec, device=device or spec.device, gentle=gentle)
        return EngineLink(spec)

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
