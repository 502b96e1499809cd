"""Endpoints: where the daemon's socket is by default, and whether a given one can be used."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from gpu_server.errors import EndpointError, EndpointForbidden, Unavailable

SOCKET_NAME = "gpu-server.sock"
SYSTEM_SOCKET = Path("/run/gpu-server") / SOCKET_NAME
MAX_IPC_PATH_BYTES = 107
PROBE_S = 0.02
START_HINT = "start it with: gpu-server start"


def server_default() -> str:
    """Where a daemon binds by default: $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/gpu-server or a private folder in /tmp."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return f"ipc://{Path(runtime) / SOCKET_NAME if runtime else _user_socket()}"


def client_default() -> str:
    """Where a client looks: $GPU_SERVER_ENDPOINT, else this user's daemon, else the system's at /run/gpu-server."""
    if named := os.environ.get("GPU_SERVER_ENDPOINT"):
        return named
    user = _user_socket()
    return f"ipc://{SYSTEM_SOCKET if SYSTEM_SOCKET.exists() and not user.exists() else user}"


def ipc_path(endpoint: str) -> Path | None:
    """The socket file of an ipc endpoint, None for tcp."""
    return Path(endpoint.removeprefix("ipc://")) if endpoint.startswith("ipc://") else None


def check(endpoint: str) -> None:
    """Refuse an endpoint that could never work: raises EndpointError with the reason and the limit."""
    if endpoint.startswith("tcp://"):
        _check_tcp(endpoint)
        return
    path = ipc_path(endpoint)
    if path is None:
        raise EndpointError(f"endpoint {endpoint!r} must start with ipc:// or tcp://")
    if not path.is_absolute():
        raise EndpointError(f"endpoint {endpoint!r} must name an absolute path (ipc:///folder/name.sock)")
    size = len(os.fsencode(path))
    if size > MAX_IPC_PATH_BYTES:
        raise EndpointError(
            f"socket path has {size} bytes and the system allows {MAX_IPC_PATH_BYTES}; choose a shorter one: {path}"
        )


def is_ipv6(endpoint: str) -> bool:
    """Whether it is an IPv6 address, which a ZeroMQ socket has to be told; of a name's addresses it takes an IPv4 one."""
    return isinstance(_address(endpoint), ipaddress.IPv6Address)


def is_local(endpoint: str) -> bool:
    """Whether only this machine can reach it: ipc, and tcp on loopback."""
    address = _address(endpoint)
    return ipc_path(endpoint) is not None or (address is not None and address.is_loopback)


def check_reachable(endpoint: str) -> None:
    """Say at once what a connect could only time out on, or should not trust: raises Unavailable or EndpointForbidden.

    Of tcp nothing is known at once.
    """
    path = ipc_path(endpoint)
    if path is None:
        return
    _check_owner(path.parent)
    if os.access(path, os.R_OK | os.W_OK):
        return
    try:
        path.stat()
    except PermissionError:
        pass
    except OSError:
        raise Unavailable(
            f"no gpu-server daemon at {endpoint}; {START_HINT}", {"endpoint": endpoint}
        ) from None
    raise EndpointForbidden(
        f"no permission for the socket {endpoint}; run as its owner or join its group", {"endpoint": endpoint}
    )


def listens(endpoint: str) -> bool:
    """Whether somebody takes connections there; also where as many as may wait to be taken do so already.

    Never at a host's name: to look it up may take longer than anybody can wait.
    """
    path, address = ipc_path(endpoint), _address(endpoint)
    if path is None and address is None:
        return False
    try:
        if path is None:
            socket.create_connection((str(address), urlsplit(endpoint).port or 0), PROBE_S).close()
        else:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(PROBE_S)
                probe.connect(str(path))
    except (BlockingIOError, TimeoutError):
        return True
    except OSError:
        return False
    return True


def _address(endpoint: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """That of a tcp endpoint; None where it names another host than this one instead."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None


def _check_owner(folder: Path) -> None:
    """Everyone can write in /tmp: another user may have taken the private folder's name there first."""
    if folder != _private_folder():
        return
    try:
        info = folder.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(info.st_mode) or info.st_uid not in (os.getuid(), 0):
        raise EndpointForbidden(
            f"the socket's folder {folder} is not a folder of this user; another may have made it",
            {"folder": str(folder)},
        )


def _private_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"gpu-server-{os.getuid()}"


def _user_socket() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return (Path(runtime) / "gpu-server" if runtime else _private_folder()) / SOCKET_NAME


def _check_tcp(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or not port:
        raise EndpointError(f"endpoint {endpoint!r} must be tcp://host:port")
