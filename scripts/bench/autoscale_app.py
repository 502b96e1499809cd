"""What `autoscale.py` puts under load: a WSGI app that burns CPU and then asks the daemon, and the daemon's small model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from gpu_server import Client, Model

CPU_S = float(os.environ.get("BENCH_CPU_MS", "10")) / 1e3
client = Client(timeout_s=25)


class Double(Model):
    """Twice its input; next to no work for the engine."""

    inputs: ClassVar[dict[str, Any]] = {"x": ("i64", ())}

    def load(self, device: Any) -> None:
        """Nothing to load."""

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The doubles."""
        return {"y": batch["x"] * 2}

    def example(self) -> dict[str, Any]:
        """One number."""
        return {"x": 1}


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """The frontend's share is CPU time of this thread, whatever else the machine does."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    end = time.thread_time() + CPU_S
    while time.thread_time() < end:
        pass
    y = client.infer(x=np.array([21]))["y"]
    body = b'{"y":%d}' % int(y[0])
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
