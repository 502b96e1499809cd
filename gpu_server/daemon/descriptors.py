"""How many descriptors the daemon may open, and who is turned away before they run out.

libzmq ends the process when it can accept no connection for want of a descriptor.
"""

from __future__ import annotations

import logging
import resource
import socket as sockets
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

SPARE = 1300
"""libzmq accepts up to 1001 connections before it waits for us to look (`Peers`); the rest is for engines and files."""
_WARN_EVERY_S = 10.0


def raise_limit() -> None:
    """Raise the soft limit, which shells set for interactive programs, to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < 2 * SPARE:
        log.warning(
            "few open files allowed: a flood of connections can end the daemon", extra={"limit": hard}
        )


class Gate:
    """Ends new connections to `endpoint` while few descriptors are left; connections that stand are not touched.

    To unbind instead would end those too (libzmq 4.3.5: a listener owns what it has accepted).

    limit: how many the process may open; the one in force by default. on_refused: called for each that was ended.
    """

    def __init__(
        self,
        endpoint: str,
        on_refused: Callable[[], None],
        limit: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limit = limit if limit is not None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._endpoint = endpoint
        self._most = limit - min(SPARE, limit // 2)
        self._on_refused = on_refused
        self._clock = clock
        self._quiet_until = clock()

    def accepted(self, descriptor: int) -> None:
        """Take note of a connection that libzmq has accepted.

        The lowest free descriptor is the one that is given, so a high one says that all below are in use.
        """
        if descriptor >= self._most and self.hang_up(descriptor):
            self._on_refused()
            self._warn()

    def hang_up(self, descriptor: int) -> bool:
        """Shut a connection down, which makes libzmq close it; returns whether it was one.

        It may have been closed meanwhile, and the number given to something else: only a connection to `endpoint` counts.
        """
        try:
            socket = sockets.socket(fileno=descriptor)
        except OSError:
            return False
        try:
            ours = self._endpoint in _endpoints_of(socket)
            if ours:
                socket.shutdown(sockets.SHUT_RDWR)
        except OSError:
            return False
        finally:
            socket.detach()
        return ours

    def _warn(self) -> None:
        now = self._clock()
        if now >= self._quiet_until:
            self._quiet_until = now + _WARN_EVERY_S
            log.warning("too many connections: new ones are refused", extra={"most": self._most})


def _endpoints_of(socket: sockets.socket) -> tuple[str, ...]:
    """Where a listener of this connection may be bound."""
    name = socket.getsockname()
    if socket.family == sockets.AF_INET6:
        return f"tcp://[{name[0]}]:{name[1]}", f"tcp://[::]:{name[1]}"
    if isinstance(name, tuple):
        return f"tcp://{name[0]}:{name[1]}", f"tcp://0.0.0.0:{name[1]}"
    return (f"ipc://{name}",)
