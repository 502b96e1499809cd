"""What `autoscale.py` puts under load: the stock frontend with a route that burns CPU or waits, and then asks the daemon."""

from __future__ import annotations

import os
import time

import numpy as np

from web import create_app, get_client

CPU_S = float(os.environ.get("BENCH_CPU_MS", "10")) / 1e3
WAIT_S = float(os.environ.get("BENCH_WAIT_MS", "0")) / 1e3
app = create_app()


@app.post("/work")
def work() -> dict[str, int]:
    """CPU time of this thread, whatever else the machine does; the wait stands for a database that the app asks."""
    end = time.thread_time() + CPU_S
    while time.thread_time() < end:
        pass
    time.sleep(WAIT_S)
    return {"y": int(get_client().infer(x=np.array([21]))["y"][0])}
