"""systemd's side of a service: sd_notify messages, and a listening socket that systemd has opened."""

from __future__ import annotations

import os
import socket as sockets
import stat
import time
from collections.abc import MutableMapping
from typing import NamedTuple

from gpu_server.errors import ConfigError

FIRST_FD = 3


class Notifier:
    """Datagrams to the service manager (sd_notify(3)); says nothing where there is none.

    address: a socket's path, or its abstract name after «@»; "" means no manager.
    watchdog_s: how long the manager waits between two signs of life; 0 means for ever.
    """

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self.enabled = address[:1] in ("/", "@") and len(address) > 1
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def from_environment(cls, env: MutableMapping[str, str] = os.environ) -> Notifier:
        """What $NOTIFY_SOCKET and $WATCHDOG_USEC ask for; both are taken out, since only this process may speak."""
        address = env.pop("NOTIFY_SOCKET", "")
        usec, pid = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
        ours = usec.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1e6 if ours else 0.0)

    def send(self, *assignments: str) -> bool:
        """Send `NAME=value` lines as one message. Whether the manager has them: its socket may be full for a moment."""
        if not self.enabled:
            return True
        try:
            with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as socket:
                socket.setblocking(False)
                socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            return False
        return True


def status(text: str) -> str:
    """The assignment for what `systemctl status` shows, one line."""
    return "STATUS=" + " ".join(text.split())


def extend_timeout(seconds: float) -> str:
    """The assignment that gives a start, reload or stop this long from now, whatever its own time-out."""
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"


def reloading() -> tuple[str, str]:
    """The assignments that begin a reload; `READY=1` ends it."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


class Listener(NamedTuple):
    """A listening socket of ours that was opened before us, and the endpoint that it is."""

    fd: int
    endpoint: str


def inherited_listener(env: MutableMapping[str, str] = os.environ) -> Listener | None:
    """The socket of a `.socket` unit (sd_listen_fds(3)), None if there is none for this process.

    Raises ConfigError unless it is exactly one listening Unix stream socket with a path.
    """
    count, pid = env.pop("LISTEN_FDS", ""), env.pop("LISTEN_PID", "")
    env.pop("LISTEN_FDNAMES", None)
    if not count.isdecimal() or int(count) == 0 or pid != str(os.getpid()):
        return None
    if int(count) != 1:
        raise ConfigError(f"the socket unit passes {count} sockets; the daemon takes one ListenStream=")
    os.set_inheritable(FIRST_FD, False)
    return Listener(FIRST_FD, f"ipc://{_path_of(FIRST_FD)}")


def _path_of(fd: int) -> str:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise ConfigError(f"descriptor {fd}, passed as a listening socket, is not a socket")
    # A copy: closing it must leave the descriptor itself open.
    with sockets.socket(fileno=os.dup(fd)) as copy:
        listens = copy.getsockopt(sockets.SOL_SOCKET, sockets.SO_ACCEPTCONN)
        name = copy.getsockname()
        if (
            copy.family != sockets.AF_UNIX
            or not listens
            or not isinstance(name, str)
            or not name.startswith("/")
        ):
            raise ConfigError("the socket unit must have ListenStream= with the path of a Unix socket")
    return name
