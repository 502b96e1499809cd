"""What a spawned child runs first: finds the engine by name, so that the daemon never imports it."""

from __future__ import annotations

from importlib import import_module
from multiprocessing.connection import Connection

ENGINE = "gpu_server.engine.process"


def run_engine(spec: bytes, pipe: Connection) -> None:
    """Entry point of the engine process: an encoded EngineSpec and the pipe to the daemon."""
    import_module(ENGINE).main(spec, pipe)
