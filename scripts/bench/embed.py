"""Embeddings per second through the daemon's socket, by texts per request and clients.

    python scripts/bench/embed.py [MODEL] [--seconds 3]
    python scripts/bench/embed.py --shape bert-base

Starts a daemon with MODEL (default: all-MiniLM-L6-v2; with --shape, random weights) and drives it with pipelined clients
that send token ids of mixed lengths: tokenising and HTTP are the web workers' part and not in these figures. "of engine"
is the share of what the engine does with full batches in `gpu-server bench forward`, which runs first and is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import load
import numpy as np

from gpu_server import Client
from gpu_server.wire.documents import ModelInfo

CELLS = ((1, 1, 1), (1, 64, 1), (4, 16, 1), (4, 16, 8), (4, 16, 32), (8, 8, 32), (64, 1, 32))
"""(client processes, requests in flight in each, texts a request)"""
TEXTS = 2048
"""That a client goes through again and again: so many that their lengths are those of the engine's own figure."""


def main() -> None:
    """Print the table."""
    # Not at the top, which each client process runs too: torch would cost it seconds.
    from gpu_server.engine import shapes

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("model", nargs="?", default="")
    what.add_argument("--shape", default="", choices=["", *shapes.SHAPES])
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gsb-") as folder, shapes.folder(options.shape) as made:
        given = str(made or options.model)
        model = str(Path(given).resolve()) if given and Path(given).is_dir() else given
        engine = engine_rate(model)
        endpoint = f"ipc://{folder}/s"
        daemon = load.start_daemon(model, endpoint)
        try:
            with Client(endpoint) as client:
                info = client.model()
            print(
                f"{info.name}: {info.dtype}, {info.runs}, on {info.device}; engine alone {engine / 1e6:.2f} Mtok/s"
            )
            columns = (
                ("clients", 8),
                ("in flight", 10),
                ("texts", 6),
                ("texts/s", 9),
                ("Mtok/s", 8),
                ("of engine", 10),
            )
            print(" ".join(f"{name:>{width}}" for name, width in (*columns, ("CPU us/req", 11))))
            for cell in CELLS:
                show_cell(cell, endpoint, daemon.pid, info, engine, options.seconds)
        finally:
            daemon.terminate()
            daemon.wait()


def show_cell(
    cell: tuple[int, int, int], endpoint: str, pid: int, info: ModelInfo, engine: float, seconds: float
) -> None:
    """Measure and print one row."""
    clients, depth, texts = cell
    rows = token_rows(TEXTS, info)
    requests = load.requests_of([rows[i : i + texts] for i in range(0, TEXTS, texts)])
    measured = load.measure(endpoint, pid, requests, clients=clients, seconds=seconds, depth=depth)
    tokens = measured.rate * sum(map(len, rows)) / len(requests)
    print(
        f"{clients:8} {depth:10} {texts:6} {measured.rate * texts:9.0f} {tokens / 1e6:8.3f} {tokens / engine:10.1%} "
        f"{measured.cpu_s * 1e6:11.1f}"
    )


def token_rows(count: int, info: ModelInfo) -> list[np.ndarray]:
    """Random ids in lengths that are lognormal with median 40 and sigma 0.8, from 3 to the model's limit."""
    assert info.text is not None
    rng = np.random.default_rng(7)
    lengths = np.clip(np.round(rng.lognormal(np.log(40), 0.8, count)), 3, info.text.max_length).astype(int)
    return [rng.integers(1000, info.text.vocab_size, n, dtype=np.int32) for n in lengths]


def engine_rate(model: str) -> float:
    """Tokens per second of the engine in its largest batches."""
    command = [sys.executable, "-m", "gpu_server", "bench", "forward", "--json", *([model] if model else [])]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        raise SystemExit(answer.returncode)
    report = json.loads(answer.stdout)
    return float(report["rows"][-1]["tokens_per_s"])


if __name__ == "__main__":
    main()
