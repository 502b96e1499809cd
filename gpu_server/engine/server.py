"""The engine's end of its channel: one thread that receives batches, keeps two on the device, and replies."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from gpu_server.channel import Channel
from gpu_server.engine.loader import LoadedModel
from gpu_server.engine.runner import Pending
from gpu_server.errors import (
    InternalError,
    ModelFailed,
    ModelNotFound,
    ProtocolError,
    RemoteError,
    UnsupportedOperation,
)
from gpu_server.wire import (
    MAX_BATCH_HEADER_BYTES,
    VERSION,
    Buffer,
    Limits,
    ReplyHeader,
    RequestHeader,
    Tensors,
    Timing,
    decode_request,
    document,
    encode_reply,
    error_reply,
)

MAX_BATCH_ITEMS = 1 << 20

log = logging.getLogger(__name__)


class EngineServer:
    """Serves loaded models to the daemon. All device work happens in the thread that calls `serve`.

    after_batch: called when a batch has been answered.
    """

    def __init__(
        self,
        channel: Channel,
        models: Mapping[str, LoadedModel],
        *,
        in_flight: int,
        max_bytes: int,
        after_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._channel = channel
        self._models = models
        self._in_flight = in_flight
        self._after_batch = after_batch
        self._limits = Limits(
            max_frame_bytes=max_bytes, max_request_bytes=max_bytes, max_items=MAX_BATCH_ITEMS
        )
        self._pending: deque[tuple[RequestHeader, Pending]] = deque()
        self._last_end = 0.0

    def serve(self) -> None:
        """Run until the daemon is gone.

        The next batch is enqueued while the last one runs, also if it comes only then: waiting for the device would keep a
        core as busy as looking for both does.
        """
        while not self._channel.closed:
            frames = self._channel.receive(wait=not self._pending)
            if frames is not None:
                self._accept(frames)
            if self._pending and (len(self._pending) >= self._in_flight or self._pending[0][1].ready()):
                self._reply(*self._pending.popleft())
                self._after_batch()

    def _accept(self, frames: Sequence[Buffer]) -> None:
        try:
            header, inputs = decode_request(frames, self._limits, MAX_BATCH_HEADER_BYTES)
            self._run(header, inputs)
        except ProtocolError as error:
            self._channel.send(error_reply(error.request_id, error.code, str(error), details=error.details))

    def _run(self, header: RequestHeader, inputs: Tensors) -> None:
        loaded = self._models.get(header.model)
        try:
            if loaded is None:
                raise ModelNotFound(f"model {header.model!r} is not loaded here")
            if header.op == "infer" and inputs:
                self._pending.append((header, loaded.runner.enqueue(inputs, header.params)))
            elif header.op == "tokenizer":
                data = loaded.model.tokenizer_json()
                if data is None:
                    raise InternalError(f"model {header.model!r} gave no tokenizer")
                reply = ReplyHeader(v=VERSION, id=header.id)
                self._channel.send(encode_reply(reply, document("tokenizer", data)))
            else:
                raise UnsupportedOperation(f"operation {header.op!r} is not offered by an engine")
        except RemoteError as error:
            self._refuse(header, error)

    def _reply(self, header: RequestHeader, pending: Pending) -> None:
        try:
            outputs, item_errors = pending.wait()
        except RemoteError as error:
            self._refuse(header, error, self._timing(pending))
            return
        finally:
            if pending.raised is not None:
                # Not its words, which may quote the request.
                raised = f"{pending.raised.kind}{pending.raised.place}"
                _tell("the model raised", header, logging.WARNING, error=raised)
        timing = self._timing(pending)
        _tell("batch ran", header, compute_ms=timing.compute_us / 1e3, failed_items=len(item_errors))
        reply = ReplyHeader(v=VERSION, id=header.id, item_errors=tuple(item_errors), timing=timing)
        try:
            frames = encode_reply(reply, outputs)
        except ProtocolError as error:
            self._refuse(header, ModelFailed(f"{len(item_errors)} items failed: {error}"), timing)
        else:
            self._channel.send(frames)

    def _refuse(
        self,
        header: RequestHeader,
        error: RemoteError,
        timing: Timing | msgspec.UnsetType = msgspec.UNSET,
    ) -> None:
        # What it was raised through holds the batch and, with it, a cycle: its memory would stay until a collection.
        error.__traceback__ = None
        _tell("batch failed", header, code=error.code, reason=error.message)
        frames = error_reply(header.id, error.code, error.message, error.retryable, error.details, timing)
        self._channel.send(frames)

    def _timing(self, pending: Pending) -> Timing:
        """The batch's own time on the device, from its start or the end of the one before it; and the cost that fits."""
        now = time.perf_counter()
        seconds = now - max(pending.started, self._last_end)
        self._last_end = now
        return Timing(compute_us=int(seconds * 1e6), batch_tokens=pending.fitting)


def _tell(event: str, header: RequestHeader, level: int = logging.DEBUG, **facts: object) -> None:
    """A line under the daemon's number of the batch, and the trace of its first request."""
    if header.op == "infer" and log.isEnabledFor(level):
        batch = {
            "batch": int.from_bytes(header.id, "little"),
            "model": header.model,
            "trace": header.traceparent[3:35],
        }
        log.log(level, event, extra=batch | facts)
