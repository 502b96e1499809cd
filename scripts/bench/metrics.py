"""What the metrics cost the daemon: its CPU per message with them and without, interleaved in one run.

    python scripts/bench/metrics.py [--seconds 3] [--rounds 5] [--depth 32]

Both daemons are scripts/bench/daemon.py's, with its model that answers at once; in the other one everything that counts a
message, a batch or a point of history does nothing. That difference is a few hundred nanoseconds, less than a busy machine's
noise between two runs, so the same calls are also timed alone, by the message, against the CPU that the whole daemon took.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import load
from daemon import MODEL, requests
from load import Measured

from gpu_server.daemon.metrics import ModelMetrics

SILENT = """
import sys
from gpu_server.cli import main
from gpu_server.daemon.history import Recorder
from gpu_server.daemon.metrics import ModelMetrics

# The engine process imports this file too.
if __name__ == "__main__":
    for counted in ("accepted", "answered", "ran"):
        setattr(ModelMetrics, counted, lambda self, *values: None)
    Recorder.record = lambda self, now, moment: setattr(self, "due", now + 1e6)
    main()
"""
CALLS = 200_000


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=32, help="requests kept in flight")
    options = parser.parse_args()
    print(
        f"{platform.machine()} {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"depth {options.depth}, {options.rounds} × {options.seconds:g} s each"
    )
    rows: dict[str, list[Measured]] = {"on": [], "off": []}
    alone = []
    with tempfile.TemporaryDirectory(prefix="gsb-") as folder:
        (Path(folder) / "instant.py").write_text(MODEL)
        for number in range(options.rounds):
            for name, measured in rows.items():
                load.show(f"round {number + 1}/{options.rounds}: metrics {name}")
                measured.append(measure(Path(folder), options, silent=name == "off"))
            alone.append(seconds_a_message(options.depth))
    load.show("")
    report(rows, statistics.median(alone))


def report(rows: dict[str, list[Measured]], alone_s: float) -> None:
    """Print medians and the two estimates."""
    cpu = {name: statistics.median(m.cpu_s for m in measured) for name, measured in rows.items()}
    for name, measured in rows.items():
        rate = statistics.median(m.rate for m in measured)
        print(f"metrics {name:4} {rate:9.0f} messages/s {cpu[name] * 1e6:8.2f} us of CPU a message")
    print(f"difference: {cpu['on'] / cpu['off'] - 1:+.1%}")
    print(f"the calls alone: {alone_s * 1e6:.2f} us a message, {alone_s / cpu['on']:.1%} of the daemon's CPU")


def measure(folder: Path, options: argparse.Namespace, *, silent: bool) -> Measured:
    """Rate and CPU of one daemon."""
    endpoint = f"ipc://{folder}/daemon.sock"
    start = silent_daemon if silent else load.start_daemon
    running = start("instant:Instant", endpoint, "--threads", "1", folder=folder)
    try:
        return load.measure(endpoint, running.pid, requests(options), clients=1, seconds=options.seconds)
    finally:
        running.terminate()
        running.wait()


def silent_daemon(model: str, endpoint: str, *options: str, folder: Path) -> subprocess.Popen[bytes]:
    """A daemon that counts nothing."""
    (folder / "silent.py").write_text(SILENT)
    command = [sys.executable, str(folder / "silent.py"), "start", model, "--endpoint", endpoint, *options]
    return load.wait_ready(subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL), endpoint)


def seconds_a_message(batch: int) -> float:
    """CPU seconds that counting a message takes, with its part of a batch's."""
    metrics = ModelMetrics()
    started = time.process_time()
    for number in range(CALLS):
        metrics.accepted(1)
        metrics.answered(0.003, 0.001)
        if not number % batch:
            metrics.ran(batch, 16 * batch, 0.002)
    return (time.process_time() - started) / CALLS


if __name__ == "__main__":
    main()
