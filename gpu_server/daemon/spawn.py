"""What a spawned child runs first: finds the engine by name, so that the daemon never imports it."""

from __future__ import annotations

import socket as sockets
from importlib import import_module
from multiprocessing.connection import Connection

ENGINE = "gpu_server.engine.process"


def run_engine(spec: bytes, pipe: Connection, socket: sockets.socket) -> None:
    """Entry point of the engine process: an encoded EngineSpec, the pipe to the daemon, and the socket for batches."""
    import_module(ENGINE).main(spec, pipe, socket)
