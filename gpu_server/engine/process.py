"""The engine process from its first line to its exit: tell the daemon each step, load, warm, serve."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import socket as sockets
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Literal

from gpu_server import logs, shared_frames, source
from gpu_server.channel import Channel
from gpu_server.engine import blame, imports, parent, priority
from gpu_server.errors import (
    ConfigError,
    DeviceLost,
    EngineStartFailed,
    GPUServerError,
    MissingDependency,
    OutOfMemory,
)
from gpu_server.source import INSTALL_SERVER
from gpu_server.wire.events import EngineSpec, Event, pack, unpack_spec

if TYPE_CHECKING:
    import torch

    from gpu_server.engine.loader import LoadedModel
    from gpu_server.engine.server import EngineServer

log = logging.getLogger(__name__)

Tell = Callable[[Event], None]

GC_THRESHOLD = 50_000
LOADING_FROM = 0.5
"""How far a start has come when the models begin to load: until then it imports."""


def main(spec_bytes: bytes, pipe: Connection, socket: sockets.socket) -> None:
    """Serve as the spec says until the daemon goes; exits the process, never returns an error."""
    parent.kill_with_parent()
    spec = unpack_spec(spec_bytes)
    parent.die_with_parent(pipe)
    logs.setup(spec.log_level, spec.log_format, "engine")
    tell = _teller(pipe)
    serving = False
    try:
        with priority.lowered() if spec.gentle else nullcontext():
            server = _start(spec, tell, Channel(socket, shared_frames.accept(socket)))
        serving = True
        server.serve()
    except Exception as error:  # noqa: BLE001 - the process boundary: every end is told to the daemon
        sys.exit(_report(tell, error, serving))


def _teller(pipe: Connection) -> Tell:
    """Sends events over the pipe, from any thread."""
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            pipe.send_bytes(pack(event))

    return tell


def _start(spec: EngineSpec, tell: Tell, channel: Channel) -> EngineServer:
    """Load every model and say ready."""

    def progress(phase: str, done: float, device: str = "") -> None:
        tell(Event(kind="progress", phase=phase, progress=done, device=device))

    with imports.uncollected():
        device = _import(spec, progress)
    from gpu_server.engine import device as devices
    from gpu_server.engine import gpu, memory
    from gpu_server.engine.server import EngineServer

    memory.bound(device, spec.max_memory_mb)
    name = devices.describe(device)
    progress("device ready", LOADING_FROM, name)
    models = _load(spec, device, progress)
    taken = [loaded.memory for loaded in models.values()]
    reporter = memory.Reporter(
        device, spec.max_memory_mb, taken, lambda seen: tell(Event(kind="memory", memory=seen))
    )
    reporter.tick()
    _freeze()
    infos = tuple(loaded.info for loaded in models.values())
    tell(Event(kind="ready", progress=1.0, device=name, models=infos))
    gpu.watch(memory.uuid(device), lambda seen: tell(Event(kind="gpu", gpu=seen)))
    return EngineServer(
        channel,
        models,
        in_flight=spec.batches_in_flight,
        max_bytes=spec.max_batch_bytes,
        after_batch=reporter.tick,
    )


def _import(spec: EngineSpec, progress: Callable[[str, float], None]) -> torch.device:
    """Import what the models need, and take the device meanwhile."""
    progress("importing torch", 0.02)
    _prepare_torch()
    from gpu_server.engine import device as devices

    device = devices.choose(spec.device)
    devices.settle(device, spec.threads)
    with devices.waking(device):
        if any(source.kind_of(model.source) != "class" for model in spec.models):
            progress("importing transformers", 0.2)
            imports.text_models()
    devices.use_own_stream(device, [model.source for model in spec.models])
    return device


def _prepare_torch() -> None:
    """What must be settled before the first import of torch. Raises MissingDependency where it is not installed."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Without it, batches of changing sizes leave the device's memory in pieces too small for the next.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    if importlib.util.find_spec("torch") is None:
        raise MissingDependency(f"torch is not installed; {INSTALL_SERVER}")


def _load(
    spec: EngineSpec, device: torch.device, progress: Callable[[str, float], None]
) -> dict[str, LoadedModel]:
    """Every model by its name, one after the other; each is an equal part of the progress from LOADING_FROM to 1."""
    from gpu_server.engine.loader import load

    models: dict[str, LoadedModel] = {}
    share = (1 - LOADING_FROM) / len(spec.models)
    for number, model in enumerate(spec.models):

        def loading(phase: str, done: float, base: float = LOADING_FROM + number * share) -> None:
            progress(phase, base + done * share)

        models[model.name] = load(model, spec, device, loading)
    return models


def _freeze() -> None:
    """What is loaded stays. Walking it now and then would hold up a batch for milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 100)


def _report(tell: Tell, error: Exception, serving: bool) -> int:
    """Tell the daemon why this engine ends, and choose the exit code that says the same.

    Permanent is only what a fresh process would meet again: a failed start, unless the device was to blame.
    """
    ours = isinstance(error, GPUServerError)
    message = str(error).partition("\n")[0] if ours else blame.describe(error)
    raised = error.error if isinstance(error, blame.LoadRaised) else error
    if not isinstance(raised, GPUServerError) or raised.__cause__ is not None:
        log.debug("engine failed", exc_info=raised)
    code = error.exit_code if isinstance(error, ConfigError) else EngineStartFailed.exit_code
    fault = _fault(raised)
    event = Event(
        kind="failed", message=message, exit_code=code, permanent=not fault and not serving, fault=fault
    )
    with suppress(OSError):
        tell(event)
    return DeviceLost.exit_code if fault else code


def _fault(error: Exception) -> Literal["", "device", "memory"]:
    """What failed, where a fresh process may do better: the device was lost or full, the model is not at fault."""
    if isinstance(error, OutOfMemory):
        return "memory"
    if isinstance(error, DeviceLost):
        return "device"
    if "torch" not in sys.modules:
        return ""
    from gpu_server.models import device_errors

    if device_errors.is_out_of_memory(error):
        return "memory"
    return "device" if device_errors.is_lost(error) else ""
