"""CURVE keys, for tcp: the files that hold them, and who needs which before a byte leaves the machine.

A key is 40 characters of Z85, as ZeroMQ writes them. A secret key's file holds nothing else; a public key's has the key and
a name on one line, so that a list of clients is such files one after the other.
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from gpu_server import endpoint as endpoints
from gpu_server.config import ClientConfig, ServerConfig, env_name
from gpu_server.errors import ConfigError, EndpointError

log = logging.getLogger(__name__)

KEY_CHARACTERS = 40
FRAME_OVERHEAD = 33
"""Bytes that encryption adds to a frame."""


class ServerKeys(NamedTuple):
    """The daemon's secret key, and the file with the public keys of its clients."""

    secret: bytes
    clients: Path


class ClientKeys(NamedTuple):
    """A client's own pair, and the daemon's public key."""

    public: bytes
    secret: bytes
    server: bytes


def make(stem: Path) -> tuple[Path, Path]:
    """Make a pair: the secret key in `stem`.key, for its owner alone, and the public one in `stem`.pub.

    Raises ConfigError if one is there already or cannot be written, or the name cannot stand in a line.
    """
    if not stem.name:
        raise ConfigError(f"{stem}: names no file")
    if not stem.name.isprintable():
        raise ConfigError(
            f"{stem.name!a}: the name stands in the public key's file, in one line: it must be printable"
        )
    public, secret = zmq.curve_keypair()
    private, shared = stem.with_name(f"{stem.name}.key"), stem.with_name(f"{stem.name}.pub")
    # False where one may not look: writing says why.
    if os.path.exists(shared):
        raise ConfigError(f"{shared}: File exists")
    _write(private, secret.decode(), 0o600)
    _write(shared, f"{public.decode()} {stem.name}", 0o644)
    return private, shared


def for_server(settings: ServerConfig, endpoint: str) -> ServerKeys | None:
    """The keys that guard an endpoint, None if it needs none.

    Raises EndpointError where other machines could reach it without keys, ConfigError on keys that cannot be used.
    """
    endpoints.check(endpoint)
    if not settings.curve_key_file and not settings.curve_clients_file:
        if endpoints.is_local(endpoint):
            return None
        if not settings.insecure_tcp:
            raise EndpointError(
                f"endpoint {endpoint} can be reached from other machines: set --curve-key-file and --curve-clients-file,"
                " or --insecure-tcp to serve whoever connects, unencrypted"
            )
        log.warning("serving whoever can reach the port, unencrypted", extra={"endpoint": endpoint})
        return None
    if not settings.curve_key_file or not settings.curve_clients_file:
        raise ConfigError("curve_key_file and curve_clients_file belong together: set both")
    if endpoints.ipc_path(endpoint) is not None:
        raise ConfigError(f"curve_key_file is for tcp; {endpoint} is guarded by its file's rights")
    keys = ServerKeys(read_secret(Path(settings.curve_key_file)), Path(settings.curve_clients_file))
    read_clients(keys.clients)
    return keys


def for_client(settings: ClientConfig, endpoint: str) -> ClientKeys | None:
    """The keys to call an endpoint with, None if it is called without; ipc never has any.

    Raises EndpointError on another machine's endpoint without keys, ConfigError on keys that cannot be used.
    """
    own, server = settings.curve_client_key_file, settings.curve_server_key_file
    endpoints.check(endpoint)
    if endpoints.ipc_path(endpoint) is not None:
        return None
    names = env_name("curve_client_key_file"), env_name("curve_server_key_file")
    if not own and not server:
        if endpoints.is_local(endpoint) or settings.insecure_tcp:
            return None
        raise EndpointError(
            f"endpoint {endpoint} may be on another machine: set {names[0]} and {names[1]},"
            f" or {env_name('insecure_tcp')}=1 to send everything unencrypted"
        )
    if not own or not server:
        raise ConfigError(f"{names[0]} and {names[1]} belong together: set both")
    secret = read_secret(Path(own))
    return ClientKeys(zmq.curve_public(secret), secret, _read_public(Path(server)))


def read_secret(path: Path) -> bytes:
    """A secret key. Raises ConfigError if it is none, or anybody but its owner could read it."""
    text, mode = _read(path)
    key, named, _ = text.strip().partition(" ")
    if named and _is_key(key):
        raise ConfigError(f"{path}: this is a public key; the secret one is in the .key file made with it")
    if mode & 0o077:
        raise ConfigError(f"{path}: others than its owner may open this secret key; run: chmod 600 {path}")
    return _key(text.strip(), str(path))


def read_clients(path: Path) -> dict[bytes, str]:
    """Names of clients by their public keys; empty lines and those that begin with «# » do not count.

    Raises ConfigError naming the line that is no key, and on a file that anybody but its owner could change.
    """
    text, mode = _read(path)
    if mode & 0o022:
        raise ConfigError(f"{path}: others than its owner may change who connects; run: chmod go-w {path}")
    clients = {}
    for number, line in enumerate(text.splitlines(), 1):
        key, _, name = line.strip().partition(" ")
        # A key may begin with «#» too, but not be one.
        if key not in ("", "#"):
            clients[_key(key, f"{path}: line {number}")] = name.strip() or f"line {number}"
    return clients


def _write(path: Path, line: str, mode: int) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _read_public(path: Path) -> bytes:
    """The daemon's key. Raises ConfigError if it is none, or others than its owner could put their own in its place."""
    text, mode = _read(path)
    if mode & 0o022:
        raise ConfigError(f"{path}: others than its owner may change who is trusted; run: chmod go-w {path}")
    key, _, _ = text.strip().partition(" ")
    return _key(key, str(path))


def _read(path: Path) -> tuple[str, int]:
    """A file's text and mode."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(), os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a file of keys") from None


def _key(text: str, origin: str) -> bytes:
    """A key as ZeroMQ takes it; the message never has the text, which may be a secret."""
    if _is_key(text):
        return text.encode()
    raise ConfigError(f"{origin}: not a key of {KEY_CHARACTERS} characters (gpu-server keys makes them)")


def _is_key(text: str) -> bool:
    try:
        return len(text) == KEY_CHARACTERS and bool(z85.decode(text))
    except (KeyError, ValueError, struct.error):
        return False
