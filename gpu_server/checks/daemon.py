"""Findings on the daemon as this user's clients meet it: socket, owner, rights, leftovers, state and versions."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from gpu_server import config, curve
from gpu_server import endpoint as endpoints
from gpu_server._version import __version__
from gpu_server.checks.finding import Finding, fine
from gpu_server.client import Client
from gpu_server.daemon.instance import holder_pid
from gpu_server.errors import ConfigError, EndpointError, EndpointForbidden, RemoteError, Unavailable
from gpu_server.wire import VERSION
from gpu_server.wire.documents import Hello, Status

TIMEOUT_S = 2.0


def socket(url: str) -> Finding:
    """Whether the socket is there, whose it is, and whether this user may use it."""
    path = endpoints.ipc_path(url)
    try:
        curve.for_client(config.client(), url)
        endpoints.check_reachable(url)
    except EndpointForbidden as error:
        return Finding("socket", "error", error.message, _join(path))
    except Unavailable as error:
        fix = f"{endpoints.START_HINT}, or set GPU_SERVER_ENDPOINT to where it serves"
        return Finding("socket", "warning", error.message.partition(";")[0], fix)
    except EndpointError as error:
        return Finding("socket", "error", str(error), "set GPU_SERVER_ENDPOINT to a socket that can be")
    except ConfigError as error:
        return Finding("keys", "error", str(error), "make keys with gpu-server keys")
    if path is None:
        return fine("socket", url)
    info = path.stat()
    if not stat.S_ISSOCK(info.st_mode):
        return Finding("socket", "error", f"{path} is no socket", "remove it, or name another endpoint")
    owner, mode = _user(info.st_uid), stat.S_IMODE(info.st_mode)
    said = f"{path}, owner {owner}, mode {mode:04o}"
    if mode & 0o007 and _open_to_all(path.parent):
        fix = "whoever opens it can use the models: leave the socket's mode and its folder's to the daemon (0660, 0750)"
        return Finding("socket", "warning", f"{said}: every user of this machine can open it", fix)
    return fine("socket", said)


def leftovers(url: str) -> Finding | None:
    """A socket file that no daemon serves: clients wait for it instead of being told at once."""
    path = endpoints.ipc_path(url)
    if path is None or not path.exists() or holder_pid(url) is not None:
        return None
    if not os.access(path.with_name(f"{path.name}.lock"), os.R_OK):
        # systemd's own listener, or a daemon whose lock this user may not see.
        return None
    said = f"{path} is left of a daemon that was killed"
    return Finding("leftovers", "warning", said, f"{endpoints.START_HINT}; it replaces the file")


def serving(client: Client) -> list[Finding]:
    """Whether it answers, what it serves, and whether both sides speak the same protocol."""
    try:
        hello = client.hello(timeout_s=TIMEOUT_S)
        status = client.status(timeout_s=TIMEOUT_S)
    except EndpointForbidden as error:
        fix = "give the daemon this client's .pub file, and this client the daemon's (gpu-server keys)"
        return [Finding("keys", "error", error.message, fix)]
    except RemoteError as error:
        return [
            Finding("daemon", "error", error.message, f"{endpoints.START_HINT}; its log says why it ended")
        ]
    return [state(status), versions(hello)]


def state(status: Status) -> Finding:
    """The daemon's state, its device and its models."""
    served = ", ".join(model.name for model in status.models) or "no model yet"
    device = status.engines[0].device if status.engines else "no device"
    said = f"{status.state}: pid {status.pid}, {device}, {served}"
    if status.state == "ready":
        return fine("daemon", said)
    error = next((engine.error for engine in status.engines if engine.error), "")
    return Finding(
        "daemon",
        "warning",
        f"{said}{f', {error}' if error else ''}",
        "gpu-server status, and the daemon's log",
    )


def versions(hello: Hello) -> Finding:
    """Client and daemon of one version, or at least of one protocol."""
    said = f"client {__version__}, daemon {hello.version}, protocol {VERSION}"
    if VERSION not in hello.versions:
        return Finding(
            "versions",
            "error",
            f"{said}; the daemon speaks {list(hello.versions)}",
            "install one version on both sides",
        )
    if hello.version != __version__:
        return Finding(
            "versions", "info", said, "they understand each other; restart the older side when it suits"
        )
    return fine("versions", said)


def _join(path: Path | None) -> str:
    """Which group to join for a socket that is another's."""
    try:
        group = path.stat().st_gid if path is not None else None
    except OSError:
        group = None
    shown = f"group {group}" if group is not None else "its group"
    return f"run as the daemon's user, or join {shown} (usermod -aG, then log in anew)"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _open_to_all(folder: Path) -> bool:
    return bool(folder.stat().st_mode & 0o001)
