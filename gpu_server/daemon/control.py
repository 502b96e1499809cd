"""The owner's socket: verbs that change what is served. Nobody but the daemon's user and root can connect to it."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import zmq

from gpu_server import source
from gpu_server.daemon import model_set
from gpu_server.daemon.change import Models
from gpu_server.daemon.supervisor import Supervisor
from gpu_server.errors import (
    ConfigError,
    DeadlineExceeded,
    EndpointError,
    InternalError,
    InvalidRequest,
    LoadFailed,
    ProtocolError,
    RemoteError,
    ShuttingDown,
    UnsupportedOperation,
)
from gpu_server.wire import (
    VERSION,
    Buffer,
    Limits,
    ReplyHeader,
    RequestHeader,
    Tensors,
    decode_request,
    encode_reply,
    error_reply,
)
from gpu_server.wire.events import ModelSpec

log = logging.getLogger(__name__)

LIMITS = Limits(max_frame_bytes=4096, max_request_bytes=4096, max_items=1)
DRAIN_CAP = 64
_UMASK_OWNER_ONLY = 0o177


@dataclass
class _Caller:
    """Who waits for the change under way. deadline: on the daemon's clock; None means for as long as it takes."""

    peer: bytes
    id: bytes
    deadline: float | None


class Control:
    """Bound socket and its verbs: `load`, `unload`, `reload`, `drain`, `undrain`.

    document: what a verb that is done answers with. on_drain: called with whether new requests are to be refused.
    owners: user ids whose processes may connect.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        supervisor: Supervisor,
        clock: Callable[[], float],
        *,
        document: Callable[[], Tensors],
        on_drain: Callable[[bool], None],
        owners: Sequence[int],
    ) -> None:
        self._supervisor = supervisor
        self._clock = clock
        self._document = document
        self._on_drain = on_drain
        self._caller: _Caller | None = None
        self._stopping = False
        self._verbs: dict[str, Callable[[bytes, RequestHeader], None]] = {
            "load": self._load,
            "unload": self._unload,
            "reload": self._reload,
            "drain": partial(self._drain, True),
            "undrain": partial(self._drain, False),
        }
        self.socket = _bind(context, endpoint, owners)

    def receive(self) -> None:
        """Take in what has come; each message ends in one reply, now or when its change has ended."""
        for _ in range(DRAIN_CAP):
            try:
                peer, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._handle(peer, frames)

    def reload(self) -> None:
        """Read the models' files anew because a signal says so: there is nobody to answer, the log has the outcome."""
        try:
            self._supervisor.change(self._supervisor.models, lambda error: None)
        except RemoteError as error:
            log.error("no reload", extra={"reason": error.message})

    def expire(self) -> None:
        """Answer a caller who does not want to wait any longer; the change goes on."""
        caller = self._caller
        if caller is not None and caller.deadline is not None and self._clock() >= caller.deadline:
            self._end(caller, DeadlineExceeded("the deadline passed before the change had ended; it goes on"))

    def next_deadline(self) -> float | None:
        """When `expire` may have work, on the clock."""
        return self._caller.deadline if self._caller is not None else None

    def stop(self) -> None:
        """Begin no more changes; one that the old engine can do without is given up."""
        self._stopping = True
        self._supervisor.cancel_change(ShuttingDown("the server stops"))

    def close(self, linger_ms: int) -> None:
        """Answer who still waits, and close."""
        if self._caller is not None:
            self._end(self._caller, ShuttingDown("the server stopped before the change had ended"))
        self.socket.close(linger=linger_ms)

    def _handle(self, peer: bytes, frames: list[bytes]) -> None:
        try:
            header, _ = decode_request(frames, LIMITS)
        except ProtocolError as error:
            if len(frames) < 2 or frames[0]:
                return
            self._send(peer, error_reply(error.request_id, error.code, str(error), details=error.details))
            return
        asked = model_set.named_in(header.params)
        model = header.model or asked.get("source", "")
        log.info("control", extra={"verb": header.op, "model": model, **asked})
        try:
            verb = self._verbs.get(header.op)
            if verb is None:
                raise UnsupportedOperation(f"operation {header.op!r} is not offered on the control socket")
            if self._stopping:
                raise ShuttingDown("the server stops")
            verb(peer, header)
        except RemoteError as error:
            log.error("control refused", extra={"verb": header.op, "reason": error.message})
            self._refuse(peer, header.id, error)
        except Exception:
            log.exception("defect", extra={"verb": header.op})
            self._refuse(peer, header.id, InternalError("a defect in the server; its log has the details"))

    def _load(self, peer: bytes, header: RequestHeader) -> None:
        params = dict(header.params)
        drain_first = _flag(params, "drain_first")
        spec = _spec(header.model, params)
        self._change(peer, header, model_set.with_model(self._supervisor.models, spec), drain_first)

    def _unload(self, peer: bytes, header: RequestHeader) -> None:
        models = model_set.without_model(self._supervisor.models, header.model)
        self._change(peer, header, models, _only_flag(header))

    def _reload(self, peer: bytes, header: RequestHeader) -> None:
        self._change(peer, header, self._supervisor.models, _only_flag(header))

    def _drain(self, refuse: bool, peer: bytes, header: RequestHeader) -> None:
        self._on_drain(refuse)
        self._answer(peer, header.id)

    def _change(self, peer: bytes, header: RequestHeader, models: Models, drain_first: bool) -> None:
        deadline = self._clock() + header.deadline_ms / 1e3 if header.deadline_ms else None
        caller = _Caller(peer, header.id, deadline)
        # Before the change, which may have ended when that returns.
        before, self._caller = self._caller, caller
        try:
            self._supervisor.change(models, partial(self._end, caller), drain_first=drain_first)
        except RemoteError:
            self._caller = before
            raise

    def _end(self, caller: _Caller, error: RemoteError | None) -> None:
        """Answer a caller, unless the deadline did before."""
        if self._caller is not caller:
            return
        self._caller = None
        if error is None:
            self._answer(caller.peer, caller.id)
        else:
            self._refuse(caller.peer, caller.id, error)

    def _answer(self, peer: bytes, request_id: bytes) -> None:
        self._send(peer, encode_reply(ReplyHeader(v=VERSION, id=request_id), self._document()))

    def _refuse(self, peer: bytes, request_id: bytes, error: RemoteError) -> None:
        self._send(peer, error_reply(request_id, error.code, error.message, error.retryable, error.details))

    def _send(self, peer: bytes, frames: list[Buffer]) -> None:
        # A caller that has gone, or does not read, loses its reply: the log has the outcome.
        self.socket.send_multipart([peer, *frames], zmq.NOBLOCK)


def _bind(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, owners: Sequence[int]) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.MAXMSGSIZE, LIMITS.max_frame_bytes)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    for uid in owners:
        # The file's mode keeps others out already; the kernel's word on who connects is the second lock.
        socket.setsockopt(zmq.IPC_FILTER_UID, uid)
    previous = os.umask(_UMASK_OWNER_ONLY)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise EndpointError(f"cannot bind {endpoint}: {zmq.strerror(error.errno or 0)}") from None
    finally:
        os.umask(previous)
    return socket


def _spec(name: str, params: dict[str, Any]) -> ModelSpec:
    """The model that `load` names; what an engine could only fail on is refused at once."""
    importlib.invalidate_caches()
    try:
        spec = model_set.from_request(name, params)
        source.check(spec.source)
        return spec
    except ConfigError as error:
        raise LoadFailed(str(error)) from None
    except (OSError, RuntimeError, ValueError) as error:
        # A folder that may not be read, a home that nobody has, a name that no file system takes.
        raise LoadFailed(f"the model cannot be looked for: {error}") from None


def _only_flag(header: RequestHeader) -> bool:
    params: dict[str, Any] = dict(header.params)
    drain_first = _flag(params, "drain_first")
    if params:
        raise InvalidRequest(f"{header.op} has no parameter {next(iter(params))!r}")
    return drain_first


def _flag(params: dict[str, Any], name: str) -> bool:
    value = params.pop(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be a bool", {"field": name})
    return value
