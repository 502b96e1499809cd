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
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zmq

from gpu_server import Client
from gpu_server.wire import VERSION, ReplyHeader, RequestHeader, Tensor, Timing, encode_reply, encode_request

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
    rows: dict[str, list[tuple[float, float]]] = {"echo": [], "daemon": []}
    with tempfile.TemporaryDirectory(prefix="gsb-") as folder:
        for number in range(options.rounds):
            for name, measured in rows.items():
                show(f"round {number + 1}/{options.rounds}: {name}")
                measured.append(SERVERS[name](Path(folder), options))
    show("")
    report(rows)


def report(rows: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians and ratios."""
    print(f"{'server':8} {'messages/s':>12} {'CPU us/message':>15}")
    middle = {
        name: (statistics.median(r for r, _ in m), statistics.median(c for _, c in m))
        for name, m in rows.items()
    }
    for name, (rate, cpu) in middle.items():
        print(f"{name:8} {rate:12.0f} {cpu:15.1f}")
    rate = middle["daemon"][0] / middle["echo"][0]
    cpu = middle["echo"][1] / middle["daemon"][1]
    print(f"daemon / echo: rate {rate:.2f}, messages per CPU second {cpu:.2f}")


def bench_echo(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Measure the bare echo."""
    endpoint = f"ipc://{folder}/echo.sock"
    process = multiprocessing.get_context("spawn").Process(target=echo, args=(endpoint,), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        return measure(endpoint, process.pid, options)
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


def bench_daemon(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Measure the daemon with its instant model."""
    endpoint = f"ipc://{folder}/daemon.sock"
    (folder / "instant.py").write_text(MODEL)
    daemon = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gpu_server",
            "start",
            "instant:Instant",
            "--endpoint",
            endpoint,
            "--threads",
            "1",
        ],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_ready(endpoint, daemon)
        return measure(endpoint, daemon.pid, options)
    finally:
        daemon.terminate()
        daemon.wait()


def wait_ready(endpoint: str, daemon: subprocess.Popen[bytes]) -> None:
    """Wait for the first good status."""
    from gpu_server import RemoteError

    with Client(endpoint, timeout_s=5) as client:
        while daemon.poll() is None:
            try:
                if client.status().state == "ready":
                    return
            except RemoteError:
                pass
            time.sleep(0.05)
    raise SystemExit("the daemon did not start")


def measure(endpoint: str, pid: int, options: argparse.Namespace) -> tuple[float, float]:
    """Messages per second over all clients, and CPU microseconds of the server per message."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    clients = [
        spawn.Process(target=client, args=(endpoint, options.depth, options.seconds, pid, results))
        for _ in range(options.clients)
    ]
    for process in clients:
        process.start()
    answers = [results.get() for _ in clients]
    for process in clients:
        process.join()
    total = sum(count for count, _, _ in answers)
    cpu = statistics.median(cpu for _, _, cpu in answers)
    return sum(count / seconds for count, seconds, _ in answers), cpu / total * 1e6


def client(endpoint: str, depth: int, seconds: float, pid: int, results: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    """Keep `depth` requests in flight for `seconds` after half a second of warm-up; put (count, seconds, server CPU s)."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    ids = Tensor.from_rows([np.arange(16)])
    requests = []
    for number in range(depth):
        header = RequestHeader(v=VERSION, id=number.to_bytes(8, "little"), op="infer", deadline_ms=30_000)
        requests.append(encode_request(header, {"input_ids": ids}))
    for frames in requests:
        socket.send_multipart(frames)
    sent, counted, start, cpu = 0, 0, 0.0, 0.0
    begin = time.perf_counter()
    while True:
        socket.recv_multipart()
        socket.send_multipart(requests[sent % depth])
        sent += 1
        counted += 1
        if sent % 64 == 0:
            now = time.perf_counter()
            if not start and now - begin > 0.5:
                start, counted, cpu = now, 0, cpu_seconds(pid)
            elif start and now - start > seconds:
                results.put((counted, now - start, cpu_seconds(pid) - cpu))
                os._exit(0)


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, in seconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def show(text: str) -> None:
    """Say what runs now, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


SERVERS = {"echo": bench_echo, "daemon": bench_daemon}

if __name__ == "__main__":
    main()
