"""What the daemon shows of itself: state, status, hello, metrics and history; and what web workers report to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import msgspec

from gpu_server._version import __version__
from gpu_server.config import Config
from gpu_server.daemon.admission import find_model
from gpu_server.daemon.history import EVERY_S, Moment, Recorder
from gpu_server.daemon.memory import MemoryWatch, by_device
from gpu_server.daemon.metrics import Metrics
from gpu_server.daemon.metrics.text import Series, render
from gpu_server.daemon.router import Router
from gpu_server.daemon.scheduler import Scheduler
from gpu_server.daemon.service import Service
from gpu_server.daemon.supervisor import Supervisor
from gpu_server.errors import InvalidRequest
from gpu_server.wire import Limits, RequestHeader, Tensors, document
from gpu_server.wire.documents import Hello, QueueStatus, State, Status, to_json
from gpu_server.wire.monitoring import EngineMemory, GPUStatus, History, report_from_json
from gpu_server.wire.monitoring import to_json as monitoring_json


class View:
    """Reads the daemon's parts, changes none. `tick` is to be called when the clock has reached `due`."""

    def __init__(
        self,
        config: Config,
        endpoint: str,
        clock: Callable[[], float],
        metrics: Metrics,
        limits: Limits,
        router: Router,
        scheduler: Scheduler,
        service: Service,
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._clock = clock
        self._metrics = metrics
        self._limits = limits
        self._router = router
        self._scheduler = scheduler
        self._service = service
        self._supervisor = supervisor
        self._started = clock()
        self._recorder = Recorder(metrics, self._started)
        self._memory_watch = MemoryWatch()

    @property
    def due(self) -> float:
        """When `tick` has work, on the clock."""
        return self._recorder.due

    def tick(self) -> None:
        """Keep a point of history, and look at the memory."""
        devices = self._devices()
        self._memory_watch.check(devices)
        moment = Moment(
            queue_items=self._scheduler.items,
            in_flight=self._service.open_requests,
            memory=next(
                iter(by_device(("", memory) for memory in devices.values()).values()), EngineMemory()
            ),
            gpus=self._gpus(),
            web=self._metrics.web.status(),
        )
        self._recorder.record(self._clock(), moment)

    def state(self) -> State:
        """The daemon's state in one word."""
        if self._supervisor.state == "failed":
            return "failed"
        if self._service.draining:
            return "draining"
        if self._supervisor.state == "ready":
            return "ready"
        return "degraded" if self._service.models else "loading"

    def status(self) -> Status:
        """The status document."""
        engines = self._supervisor.statuses()
        engine = engines[0] if engines else None
        state = self.state()
        return Status(
            version=__version__,
            pid=os.getpid(),
            endpoint=self._endpoint,
            state=state,
            phase=engine.phase if engine is not None and state != "ready" else "",
            progress=1.0 if state == "ready" else engine.progress if engine is not None else 0.0,
            uptime_s=round(self._clock() - self._started, 3),
            engines=engines,
            models=tuple(self._service.models.values()),
            queue=QueueStatus(
                requests=self._service.open_requests,
                items=self._scheduler.items,
                tokens=self._scheduler.queued_tokens(),
                bytes=self._scheduler.bytes,
            ),
            counters=self._metrics.counters(),
            gpus=self._gpus(),
            web=self._metrics.web.status(),
        )

    def answer(self, peer: bytes, header: RequestHeader, inputs: Tensors) -> Tensors:
        """The outputs of `hello`, `status`, `metrics`, `history` and `report`.

        Raises InvalidRequest, and ModelLoading for a `hello` that is to wait for the models.
        """
        if header.op == "status":
            return document("document", to_json(self.status()).decode())
        if header.op == "hello":
            if header.params.get("wait") is True:
                find_model("", self._service.models, self._service.phase)
            return document("document", to_json(self._hello()).decode())
        if header.op == "history":
            return document("document", monitoring_json(self._history(header)).decode())
        if header.op == "report":
            self._take_report(peer, inputs)
            return {}
        return document("metrics", self.metrics())

    def metrics(self) -> str:
        """The Prometheus text."""
        series = dict(self._metrics.series())
        series |= {name: {(): value} for name, value in self._gauges()}
        series["info"] = {(__version__,): 1}
        return render(
            {**series, **dict(self._memory()), **dict(self._gpu())}, self._config.server.tei_metrics
        )

    def peer_gone(self, peer: bytes) -> None:
        """A connection is lost: what it served and what it had reported of its own moment."""
        self._service.peer_gone(peer)
        self._metrics.web.gone(peer)

    def _hello(self) -> Hello:
        return Hello(
            version=__version__,
            state=self.state(),
            limits=self._limits,
            default_deadline_ms=self._config.limits.default_deadline_ms,
            models=tuple(self._service.models.values()),
        )

    def _history(self, header: RequestHeader) -> History:
        since = header.params.get("since", 0)
        if type(since) is not int:
            raise InvalidRequest("since must be the number of a point", {"field": "since"})
        return History(state=self.state(), every_s=EVERY_S, points=self._recorder.since(since))

    def _take_report(self, peer: bytes, inputs: Tensors) -> None:
        given = inputs.get("report")
        if given is None or given.dtype != "utf8" or given.items != 1:
            raise InvalidRequest("report needs one utf8 input of that name", {"field": "report"})
        try:
            report = report_from_json(given.raw_strings()[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"report: {error}", {"field": "report"}) from None
        self._metrics.dropped["report"] += not self._metrics.web.add(peer, report)

    def _gauges(self) -> Iterator[tuple[str, float]]:
        yield "ready", int(self.state() == "ready")
        yield "uptime_seconds", round(self._clock() - self._started, 3)
        yield "clients", len(self._router.peers)
        yield "queue_requests", self._service.open_requests
        yield "queue_items", self._scheduler.items
        yield "queue_tokens", self._scheduler.queued_tokens()
        yield "queue_bytes", self._scheduler.bytes
        yield "batches_in_flight", sum(len(link.batches) for link in self._supervisor.links)
        yield "engine_restarts_total", self._supervisor.restarts

    def _devices(self) -> dict[str, EngineMemory]:
        links = self._supervisor.links
        return by_device(
            (link.event.device.partition(" ")[0], link.memory) for link in links if link.event.device
        )

    def _gpus(self) -> tuple[GPUStatus, ...]:
        """The GPUs in use, as their engines last saw them."""
        seen = {link.gpu.uuid: link.gpu for link in self._supervisor.links if link.gpu is not None}
        return tuple(seen.values())

    def _memory(self) -> Iterator[tuple[str, Series]]:
        devices = self._devices()
        for part in ("allocated", "reserved", "peak", "limit", "free", "total"):
            yield f"memory_{part}_bytes", {(name,): getattr(memory, part) for name, memory in devices.items()}
        yield (
            "model_memory_bytes",
            {
                (model.name, part): getattr(model, part)
                for memory in devices.values()
                for model in memory.models
                for part in ("weights", "warm_up", "activations")
            },
        )

    def _gpu(self) -> Iterator[tuple[str, Series]]:
        seen = self._gpus()
        yield "gpu_memory_used_bytes", {(gpu.uuid,): gpu.memory_used for gpu in seen}
        yield "gpu_utilization_ratio", {(gpu.uuid,): gpu.utilization for gpu in seen}
        yield "gpu_power_watts", {(gpu.uuid,): gpu.power_w for gpu in seen}
        yield "gpu_temperature_celsius", {(gpu.uuid,): gpu.temperature_c for gpu in seen}
