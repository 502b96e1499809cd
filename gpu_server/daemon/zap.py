"""Who may connect with which key: answers libzmq, which asks during each CURVE handshake (ZAP, ZeroMQ RFC 27)."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
from zmq.utils import z85

from gpu_server import curve
from gpu_server.daemon.metrics import Metrics
from gpu_server.errors import ConfigError

log = logging.getLogger(__name__)

ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"gpu-server"
"""Any, but not empty: without a handler libzmq then refuses everybody, and else accepts everybody."""
_VERSION = b"1.0"
_WARN_EVERY_S = 1.0


class Authenticator:
    """Accepts the keys of a file, which is read anew for the handshake after it has changed.

    One that cannot be read any more leaves the keys from before. A connection that stands stays when its key is taken out.
    Must be made before the socket that it guards is bound, in the same context. Raises ConfigError on a file that cannot be
    read.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        clients: Path,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = clients
        self._metrics = metrics
        self._clock = clock
        self._quiet_until = clock()
        self._seen = self._look()
        self._clients = curve.read_clients(clients)
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ADDRESS)

    def receive(self) -> None:
        """Answer the handshakes that wait."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(self._answer(frames))

    def close(self) -> None:
        """Answer no more; call before the guarded socket is closed, whose connections end only when we take note of it."""
        self.socket.close(linger=0)

    def _answer(self, frames: Sequence[bytes]) -> list[bytes]:
        _, request_id, _, address, _, mechanism, *credentials = frames
        key = z85.encode(credentials[0]) if mechanism == b"CURVE" else b""
        self._read_again()
        about = {"address": address.decode(), "key": key.decode()}
        if name := self._clients.get(key):
            log.info("client connected", extra={"client": name, **about})
            return [_VERSION, request_id, b"200", b"OK", name.encode(), b""]
        self._metrics.dropped["key_refused"] += 1
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + _WARN_EVERY_S
            log.warning("client refused: its key is not listed", extra=about)
        return [_VERSION, request_id, b"400", b"unknown key", b"", b""]

    def _read_again(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._clients = curve.read_clients(self._path)
        except ConfigError as error:
            log.error("the keys from before stay in force", extra={"reason": str(error)})
        else:
            log.info("read the clients' keys", extra={"keys": len(self._clients)})

    def _look(self) -> tuple[int, ...]:
        """What changes with the file."""
        try:
            info = os.stat(self._path)
        except OSError:
            return ()
        return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
