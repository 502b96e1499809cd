"""One daemon per endpoint: the socket's folder, the lock beside it, and what an earlier daemon left behind."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from gpu_server import endpoint as endpoints
from gpu_server.errors import AlreadyRunning, EndpointError

SOCKET_MODE = 0o660
FOLDER_MODE = 0o750
LOCK_TRIES = 10
LOCK_PAUSE_S = 0.02
_CONTROL_SUFFIX = ".ctl"


class Instance:
    """Holds the endpoint's lock for the daemon's life.

    A later bind would steal a live ipc path without a word (libzmq 4.3.5), so the lock, not the socket, keeps a second
    daemon out. Raises EndpointError if the folder cannot be used and AlreadyRunning, naming the holder, if the lock is
    taken.

    adopted: the socket was opened by a service manager, which keeps it open; it is neither changed nor removed.
    """

    def __init__(self, endpoint: str, adopted: bool = False) -> None:
        endpoints.check(endpoint)
        self.endpoint = endpoint
        self._adopted = adopted
        self._socket = endpoints.ipc_path(endpoint)
        # A tcp endpoint has no file of its own: its lock and the control socket go where this user's socket would.
        self._base = self._socket or _tcp_base(endpoint)
        self.control_endpoint = control_endpoint(endpoint)
        endpoints.check(self.control_endpoint)
        _prepare_folder(self._base.parent)
        self._lock = self._take_lock()
        self._sweep()

    def secure_socket(self) -> None:
        """Let owner and group connect, nobody else; call after bind."""
        if self._socket is not None and not self._adopted:
            self._socket.chmod(SOCKET_MODE)

    def release(self) -> None:
        """Remove our sockets and give the lock up. The lock file stays: removing it would let two daemons hold «it»."""
        if self._socket is not None and not self._adopted:
            self._socket.unlink(missing_ok=True)
        self._sweep()
        self._lock.close()

    def _take_lock(self) -> IO[str]:
        path = self._base.with_name(self._base.name + ".lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            handle = os.fdopen(os.open(path, flags, 0o640), "r+", encoding="ascii")
        except OSError as error:
            raise EndpointError(f"cannot open {path}: {error.strerror}") from None
        if not _lock(handle):
            holder = handle.read().strip() or "unknown"
            handle.close()
            raise AlreadyRunning(f"a daemon (pid {holder}) already serves {self.endpoint}")
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        return handle

    def _sweep(self) -> None:
        with suppress(OSError):
            os.unlink(f"{self._base}{_CONTROL_SUFFIX}")


def _lock(handle: IO[str]) -> bool:
    """Take the lock; tries for a moment, because `holder_pid` holds it for as long as it looks."""
    for attempt in range(LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt < LOCK_TRIES - 1:
                time.sleep(LOCK_PAUSE_S)
    return False


def control_endpoint(endpoint: str) -> str:
    """Where the daemon of an endpoint takes its owner's verbs."""
    return f"ipc://{endpoints.ipc_path(endpoint) or _tcp_base(endpoint)}{_CONTROL_SUFFIX}"


def holder_pid(endpoint: str) -> int | None:
    """Pid of the daemon that holds an endpoint's lock, None if nobody does."""
    socket = endpoints.ipc_path(endpoint) or _tcp_base(endpoint)
    path = socket.with_name(socket.name + ".lock")
    try:
        with path.open(encoding="ascii") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(handle.read().strip() or 0) or None
    except (OSError, ValueError):
        return None
    return None


def _tcp_base(endpoint: str) -> Path:
    default = endpoints.ipc_path(endpoints.server_default())
    assert default is not None
    return default.with_name("tcp-" + endpoint.rpartition(":")[2])


def _prepare_folder(folder: Path) -> None:
    try:
        made = not folder.exists()
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        info = folder.lstat() if folder == _default_folder() else folder.stat()
    except OSError as error:
        raise EndpointError(f"cannot make the socket's folder {folder}: {error.strerror}") from None
    if not made and stat.S_IMODE(info.st_mode) & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX:
        raise EndpointError(f"the socket's folder {folder} can be written by everyone; choose a private one")
    if (
        not made
        and folder == _default_folder()
        and (info.st_uid != os.getuid() or stat.S_ISLNK(info.st_mode))
    ):
        raise EndpointError(f"the socket's folder {folder} belongs to another user, or is a link")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EndpointError(f"no permission to write in the socket's folder {folder}")


def _default_folder() -> Path:
    default = endpoints.ipc_path(endpoints.server_default())
    assert default is not None
    return default.parent
