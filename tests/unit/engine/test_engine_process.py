"""What the daemon is told when an engine ends: only a failed start can be permanent."""

from __future__ import annotations

import logging
import multiprocessing
import socket as sockets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from gpu_server import logs, shared_frames
from gpu_server.engine import device as devices
from gpu_server.engine import parent, process
from gpu_server.engine.blame import LoadRaised
from gpu_server.errors import ConfigError, DeviceLost, OutOfMemory
from gpu_server.wire.events import EngineSpec, Event, ModelSpec, pack, unpack_event

SPEC = EngineSpec(
    device="cpu",
    threads=1,
    max_memory_mb=0,
    max_batch_tokens=1,
    max_batch_items=1,
    batches_in_flight=1,
    max_batch_bytes=1,
    graphs=False,
    compiled=False,
    fused=False,
    log_level="info",
    log_format="text",
    models=(),
)


class Server:
    """Serves until `error`, at once."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def serve(self) -> None:
        raise self._error


@pytest.fixture
def end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, bool], tuple[Event, object]]:
    """Run an engine into an error, while it starts or while it serves; gives its last event and exit code."""
    monkeypatch.setattr(parent, "kill_with_parent", lambda: None)
    monkeypatch.setattr(parent, "die_with_parent", lambda pipe: None)
    monkeypatch.setattr(logs, "setup", lambda *settings: None)

    def run(error: Exception, serving: bool) -> tuple[Event, object]:
        def start(*_: object) -> Server:
            if not serving:
                raise error
            return Server(error)

        monkeypatch.setattr(process, "_start", start)
        ours, theirs = multiprocessing.Pipe()
        batches, far = sockets.socketpair()
        with ours, theirs, batches, far:
            shared_frames.offer(far)
            with pytest.raises(SystemExit) as exit_:
                process.main(pack(SPEC), theirs, batches)
            return unpack_event(ours.recv_bytes()), exit_.value.code

    return run


End = Callable[[Exception, bool], tuple[Event, object]]


@pytest.mark.parametrize(("error", "code"), [(ValueError("no"), 70), (ConfigError("wrong"), 78)])
def test_a_start_that_fails_is_permanent(end: End, error: Exception, code: int) -> None:
    event, exit_code = end(error, False)
    assert (event.kind, event.permanent, event.exit_code, exit_code) == ("failed", True, code, code)
    assert event.fault == ""


def test_an_unforeseen_error_while_serving_is_not_permanent(end: End) -> None:
    event, exit_code = end(KeyError("x"), True)
    assert (event.kind, event.permanent, exit_code) == ("failed", False, 70)
    assert event.message.startswith("KeyError: 'x' (test_engine_process.py:")


def test_what_a_model_raised_while_it_loaded_is_told_with_its_name_and_logged_with_its_traceback(
    end: End, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gpu_server.engine.process")
    raised = FileNotFoundError("no weights")
    event, exit_code = end(LoadRaised("b", raised), False)
    assert event.message == "model 'b' fails to load: FileNotFoundError: no weights"
    assert (event.permanent, exit_code) == (True, 70)
    (record,) = caplog.records
    assert record.exc_info and record.exc_info[1] is raised


@pytest.mark.parametrize("serving", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        DeviceLost("gone"),
        torch.OutOfMemoryError("full"),
        OutOfMemory("not enough for the warm-up"),
        LoadRaised("m", torch.OutOfMemoryError("full")),
    ],
)
def test_a_device_that_fails_is_not_permanent(end: End, error: Exception, serving: bool) -> None:
    event, exit_code = end(error, serving)
    assert (event.permanent, exit_code) == (False, DeviceLost.exit_code)
    assert event.fault == ("device" if isinstance(error, DeviceLost) else "memory")


def test_a_fault_of_the_device_is_known_before_any_model_is_imported() -> None:
    code = (
        "from gpu_server.engine import process\n"
        "assert process._fault(RuntimeError('CUDA error: busy')) == ''\n"
        "import torch\n"
        "print(process._fault(torch.AcceleratorError('CUDA error: busy')), process._fault(torch.OutOfMemoryError()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["device", "memory"]


def test_the_stream_is_settled_for_the_models_of_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[torch.device, list[str]]] = []
    monkeypatch.setattr(devices, "use_own_stream", lambda device, sources: given.append((device, sources)))
    monkeypatch.setattr(devices, "settle", lambda device, threads: None)
    spec = msgspec.structs.replace(SPEC, models=(ModelSpec(name="m", source="module:Class"),))
    device = process._import(spec, lambda phase, done: None)
    assert given == [(device, ["module:Class"])]
