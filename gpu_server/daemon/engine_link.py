"""The daemon's side of one engine process: its start, its pipe, its channel, the batches it has."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import socket as sockets
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from typing import Literal

import msgspec

from gpu_server import shared_frames
from gpu_server.channel import Channel
from gpu_server.daemon import requestlog
from gpu_server.daemon.request import Batch
from gpu_server.daemon.spawn import run_engine
from gpu_server.errors import ProtocolError
from gpu_server.wire import (
    MAX_BATCH_HEADER_BYTES,
    VERSION,
    ReplyHeader,
    RequestHeader,
    Tensors,
    decode_reply,
    encode_request,
)
from gpu_server.wire.documents import EngineStatus, ModelInfo
from gpu_server.wire.events import EngineSpec, Event, pack, unpack_event
from gpu_server.wire.monitoring import EngineMemory, GPUStatus

LinkState = Literal["loading", "ready", "failed", "dead", "stopping"]
BatchDone = Callable[[Batch, ReplyHeader, Tensors], None]
STOP_GRACE_S = 5.0


class EngineLink:
    """One engine process from spawn to exit.

    Becomes `ready` when the engine has said so and every tokenizer has been fetched; `failed` when the engine gave a
    reason, `dead` when its process ended without one. generation: how many changes had been asked for when it was started:
    files are to change by these alone, as far as no version tells of them.
    """

    def __init__(self, spec: EngineSpec) -> None:
        """Start the process. Raises OSError where the system gives none."""
        self.state: LinkState = "loading"
        self.event = Event(kind="progress", phase="starting")
        self.heard = time.monotonic()
        self.memory = EngineMemory()
        self.gpu: GPUStatus | None = None
        self.models: dict[str, ModelInfo] = {}
        self.tokenizers: dict[str, bytes] = {}
        self.batches: dict[bytes, Batch] = {}
        self.generation = 0
        self._answered = -math.inf
        self._awaited: dict[bytes, str] = {}
        spawn = multiprocessing.get_context("spawn")
        self._pipe, their_pipe = spawn.Pipe()
        ours, theirs = sockets.socketpair()
        self.channel = Channel(ours, shared_frames.offer(ours))
        self._process = spawn.Process(
            target=run_engine, args=(pack(spec), their_pipe, theirs), name="gpu-server-engine", daemon=False
        )
        with their_pipe, theirs:
            self._process.start()
        self._exits = _exit_descriptor(self._process)

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._process.pid or 0

    def filenos(self) -> list[int]:
        """File descriptors that become readable when the engine says something or dies."""
        return [self._pipe.fileno(), self._exits]

    def poll_pipe(self) -> None:
        """Read what the engine says of its start, and notice its death."""
        try:
            while self.state not in ("dead", "failed") and self._pipe.poll():
                self._handle(unpack_event(self._pipe.recv_bytes()))
        except (EOFError, OSError, msgspec.DecodeError):
            pass
        if self.state not in ("dead", "failed") and not self._process.is_alive():
            self.state = "dead"

    def send(self, batch: Batch) -> None:
        """Hand a batch to the engine."""
        key = batch.id.to_bytes(8, "little")
        header = RequestHeader(
            v=VERSION,
            id=key,
            op="infer",
            model=batch.model,
            params=batch.params,
            traceparent=batch.slices[0][0].traceparent,
        )
        requestlog.sent(batch)
        self.batches[key] = batch
        frames = encode_request(header, batch.inputs(), MAX_BATCH_HEADER_BYTES)
        self.channel.send(frames)

    def receive(self, done: BatchDone) -> None:
        """Read all answers that have come; `done` is called for each batch."""
        while True:
            try:
                frames = self.channel.receive()
                if frames is None:
                    return
                header, outputs = decode_reply(frames)
            except ProtocolError:
                # An engine that no longer speaks the protocol cannot be trusted with anything else.
                self.kill()
                return
            batch = self.batches.pop(header.id, None)
            if batch is not None:
                self._answered = time.monotonic()
                done(batch, header, outputs)
            elif header.id in self._awaited:
                self.tokenizers[self._awaited.pop(header.id)] = outputs["tokenizer"].raw_strings()[0]
                self._ready_when_complete()

    def status(self, restarts: int, state: str = "") -> EngineStatus:
        """This engine for the status document."""
        shown = state or {"dead": "backoff"}.get(self.state, self.state)
        if shown == "loading" and self.event.phase.startswith("warming"):
            shown = "warming"
        return EngineStatus(
            pid=self.pid,
            device=self.event.device,
            state=shown,  # type: ignore[arg-type]
            phase=self.event.phase,
            progress=round(self.event.progress, 3),
            restarts=restarts,
            in_flight=len(self.batches),
            error=self.event.message,
            memory=self.memory,
        )

    def stop(self) -> None:
        """Ask the engine to end after what it runs; a closed pipe is the sign."""
        if self.state not in ("dead", "failed"):
            self.state = "stopping"
        self._pipe.close()

    def kill(self) -> None:
        """End the engine at once."""
        self._process.kill()

    def busy_since(self) -> float:
        """Since when the engine runs its oldest batch, on the monotonic clock; infinity if it has none.

        One that was sent ahead began when the one before it was answered.
        """
        return max(next(iter(self.batches.values())).sent, self._answered) if self.batches else math.inf

    def reap(self) -> bool:
        """Free the process and the channel if the process has ended; whether it has."""
        if self._process.is_alive():
            return False
        self.close()
        return True

    def exit_code(self) -> int | None:
        """What the process ended with: negative for a signal, None while it runs."""
        return self._process.exitcode

    def why_ended(self) -> str:
        """The reason in the engine's own words, or by its exit code."""
        if self.state == "failed":
            return self.event.message
        code = self.exit_code() or 0
        return f"killed by signal {-code}" if code < 0 else f"exited with code {code}"

    def close(self) -> None:
        """Reap the process, killing it if it does not end by itself, and free its channel."""
        self._process.join(STOP_GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        os.close(self._exits)
        with contextlib.suppress(OSError):
            self._pipe.close()
        self.channel.close()

    def _handle(self, event: Event) -> None:
        self.heard = time.monotonic()
        if event.kind == "memory":
            self.memory = event.memory
            return
        if event.kind == "gpu":
            self.gpu = event.gpu
            return
        device = event.device or self.event.device
        self.event = event
        self.event.device = device
        if event.kind == "failed":
            self.state = "failed"
        elif event.kind == "ready":
            self.models = {m.name: m for m in event.models}
            self._fetch_tokenizers()
            self._ready_when_complete()

    def _fetch_tokenizers(self) -> None:
        for number, info in enumerate(m for m in self.models.values() if m.text is not None):
            key = b"t%d" % number
            self._awaited[key] = info.name
            header = RequestHeader(v=VERSION, id=key, op="tokenizer", model=info.name)
            self.channel.send(encode_request(header))

    def _ready_when_complete(self) -> None:
        if not self._awaited and self.event.kind == "ready":
            self.state = "ready"


def _exit_descriptor(process: SpawnProcess) -> int:
    """A descriptor that becomes readable when a process ends.

    Its sentinel is a pipe, whose other end children of a model's own may have inherited and keep open.
    """
    try:
        return os.pidfd_open(process.pid or 0)
    except (AttributeError, OSError):
        return os.dup(process.sentinel)
