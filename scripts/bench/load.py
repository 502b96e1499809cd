"""Pipelined clients for the benchmarks: plain DEALER sockets that keep a number of prepared requests in flight."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import zmq

from gpu_server import Client, RemoteError
from gpu_server.wire import VERSION, RequestHeader, Tensor, decode_reply, encode_request

WARM_UP_S = 0.5
COOL_DOWN_S = 0.3
"""For which a client goes on after its own window, so that the others' windows end under the same load."""
ID = b"bench-id"
"""The id that prepared requests have until each is sent, under a number of its own."""
START_LIMIT_S = 300.0
REFUSAL_FRAMES = 2
"""Frames of a reply without outputs: the delimiter and the header."""


@dataclass(frozen=True)
class Measured:
    """What the clients saw: messages per second over all of them, and seconds of server CPU a message."""

    rate: float
    cpu_s: float


def requests_of(rows: Sequence[Sequence[np.ndarray]], model: str = "") -> list[list[bytes]]:
    """One prepared request for each list of token-id rows."""
    made = []
    header = RequestHeader(v=VERSION, id=ID, op="infer", model=model, deadline_ms=30_000)
    for ids in rows:
        frames = encode_request(header, {"input_ids": Tensor.from_rows(ids)})
        made.append([bytes(frame) for frame in frames])
    return made


def measure(
    endpoint: str, pid: int, requests: list[list[bytes]], *, clients: int, seconds: float, depth: int = 0
) -> Measured:
    """Run `clients` processes for the same `seconds` after a warm-up.

    requests: what each sends, over and over, each beginning elsewhere, so that they share the same requests at any time.
    depth: how many each has in flight; 0 for all of them.
    """
    spawn = multiprocessing.get_context("spawn")
    work, results, together = spawn.SimpleQueue(), spawn.SimpleQueue(), spawn.Barrier(clients)
    processes = [
        spawn.Process(
            target=run_client,
            args=(endpoint, work, number / clients, depth or len(requests), seconds, pid, results, together),
        )
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        work.put(requests)  # as an argument it would keep each start waiting for the one before
    for process in processes:
        process.join()
    answers = [results.get() for process in processes if not process.exitcode]
    if len(answers) < clients:
        raise SystemExit("a client process failed")
    if refused := [answer for answer in answers if isinstance(answer, str)]:
        raise SystemExit(refused[0])
    rate = sum(count for count, _ in answers) / seconds
    if not rate:
        raise SystemExit(f"no answer within {seconds:g} s: give it more")
    return Measured(rate, statistics.median(cpu for _, cpu in answers) / rate)


def run_client(
    endpoint: str,
    work: multiprocessing.SimpleQueue,  # type: ignore[type-arg]
    begin: float,
    depth: int,
    seconds: float,
    pid: int,
    results: multiprocessing.SimpleQueue,  # type: ignore[type-arg]
    together: Barrier,
) -> None:
    """Send `depth` requests, then one for each answer; put (answers in the window, server CPU a second), or a refusal."""
    requests = work.get()
    first = int(begin * len(requests))
    requests = requests[first:] + requests[:first]
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(endpoint)
    together.wait(START_LIMIT_S)
    start = time.perf_counter() + WARM_UP_S
    stop = start + seconds
    marks = (start, stop, stop + COOL_DOWN_S)
    for sent in range(depth):
        socket.send_multipart(numbered(requests[sent % len(requests)], sent))
    count, sent = 0, depth
    seen: list[tuple[float, float]] = []
    while True:
        reply = socket.recv_multipart()
        now = time.perf_counter()
        if len(reply) == REFUSAL_FRAMES:
            results.put(refusal(reply))
            return
        socket.send_multipart(numbered(requests[sent % len(requests)], sent))
        sent += 1
        count += start <= now < stop
        if now < marks[len(seen)]:
            continue
        seen.append((now, cpu_seconds(pid)))
        if len(seen) == len(marks):
            (began, before), (ended, after), _ = seen
            results.put((count, (after - before) / (ended - began)))
            os._exit(0)


def numbered(frames: list[bytes], number: int) -> list[bytes]:
    """A prepared request under an id that no other has."""
    delimiter, header, *tensors = frames
    return [delimiter, header.replace(ID, number.to_bytes(len(ID), "little")), *tensors]


def refusal(reply: list[bytes]) -> str:
    """What the server says in a reply without outputs."""
    header, _ = decode_reply(reply)
    return f"the server answered {header.error}"


def start_daemon(
    model: str, endpoint: str, *options: str, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start `gpu-server start MODEL` and wait until it is ready."""
    daemon = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gpu_server",
            "start",
            *([model] if model else []),
            "--endpoint",
            endpoint,
            *options,
        ],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    return wait_ready(daemon, endpoint)


def wait_ready(daemon: subprocess.Popen[bytes], endpoint: str) -> subprocess.Popen[bytes]:
    """Return a daemon once it is ready."""
    with Client(endpoint, timeout_s=5) as client:
        while daemon.poll() is None:
            try:
                if client.status().state == "ready":
                    return daemon
            except RemoteError:
                pass
            time.sleep(0.05)
    raise SystemExit("the daemon did not start")


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, in seconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def show(text: str) -> None:
    """Say what runs now, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
