"""Messages per second and CPU per message of the daemon, beside a bare pyzmq ROUTER echo in the same run.

    python scripts/bench/daemon.py [--seconds 4] [--rounds 3] [--depth 32] [--clients 1]

Both servers get the same requests (16 token ids) from the same pipelined DEALER clients and answer 384 floats; the daemon
does everything it does in service: decode, admit, schedule, batch, hand to a real engine process (whose model answers at
once), split, reply. CPU is the server process's own, all threads (/proc/PID/task/*/schedstat). Rounds are interleaved; the
medians are printed with their ratio.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
from pathlib import Path

import load
import numpy as np
import zmq
from load import Measured

from gpu_server.wire import VERSION, ReplyHeader, Tensor, Timing, encode_reply

DIMENSIONS = 384
MODEL = f'''
import torch

class Instant:
    """Answers at once, so that the daemon is what is measured."""

    inputs = {{"input_ids": ("i32", (-1,))}}
    cost = "input_ids"

    def load(self, device):
        self.rows = torch.zeros(4096, {DIMENSIONS})

    def collate(self, inputs, device):
        return inputs["input_ids"].items

    def forward(self, items):
        return {{"embedding": self.rows[:items]}}
'''


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=32, help="requests a client keeps in flight")
    parser.add_argument("--clients", type=int, default=1)
    options = parser.parse_args()
    print(
        f"{platform.machine()} {os.cpu_count()} cores, Python {platform.python_version()}, pyzmq {zmq.__version__}, "
        f"libzmq {zmq.zmq_version()}; {options.clients} client(s) × depth {options.depth}, "
        f"{options.rounds} × {options.seconds:g} s each"
    )
    rows: dict[str, list[Measured]] = {"echo": [], "daemon": []}
    with tempfile.TemporaryDirectory(prefix="gsb-") as folder:
        for number in range(options.rounds):
            for name, measured in rows.items():
                load.show(f"round {number + 1}/{options.rounds}: {name}")
                measured.append(SERVERS[name](Path(folder), options))
    load.show("")
    report(rows)


def report(rows: dict[str, list[Measured]]) -> None:
    """Print medians and ratios."""
    print(f"{'server':8} {'messages/s':>12} {'CPU us/message':>15}")
    middle = {
        name: (statistics.median(m.rate for m in ms), statistics.median(m.cpu_s for m in ms) * 1e6)
        for name, ms in rows.items()
    }
    for name, (rate, cpu) in middle.items():
        print(f"{name:8} {rate:12.0f} {cpu:15.1f}")
    rate = middle["daemon"][0] / middle["echo"][0]
    cpu = middle["echo"][1] / middle["daemon"][1]
    print(f"daemon / echo: rate {rate:.2f}, messages per CPU second {cpu:.2f}")


def bench_echo(folder: Path, options: argparse.Namespace) -> Measured:
    """Measure the bare echo."""
    endpoint = f"ipc://{folder}/echo.sock"
    process = multiprocessing.get_context("spawn").Process(target=echo, args=(endpoint,), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        return load.measure(
            endpoint, process.pid, requests(options), clients=options.clients, seconds=options.seconds
        )
    finally:
        process.kill()
        process.join()


def echo(endpoint: str) -> None:
    """Answer every message with a reply of the daemon's size: drain, answer, poll."""
    header = ReplyHeader(
        v=VERSION, id=b"12345678", model="Instant", version="0" * 12, timing=Timing(1, 2, 3, 4, 5)
    )
    reply = encode_reply(header, {"embedding": Tensor.from_numpy(np.zeros((1, DIMENSIONS), np.float32))})
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(endpoint)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    while True:
        poller.poll()
        while True:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            socket.send_multipart([frames[0], *reply])


def bench_daemon(folder: Path, options: argparse.Namespace) -> Measured:
    """Measure the daemon with its instant model."""
    endpoint = f"ipc://{folder}/daemon.sock"
    (folder / "instant.py").write_text(MODEL)
    daemon = load.start_daemon("instant:Instant", endpoint, "--threads", "1", folder=folder)
    try:
        return load.measure(
            endpoint, daemon.pid, requests(options), clients=options.clients, seconds=options.seconds
        )
    finally:
        daemon.terminate()
        daemon.wait()


def requests(options: argparse.Namespace) -> list[list[bytes]]:
    """As many requests of 16 token ids as are kept in flight."""
    return load.requests_of([[np.arange(16)]] * options.depth)


SERVERS = {"echo": bench_echo, "daemon": bench_daemon}

if __name__ == "__main__":
    main()
