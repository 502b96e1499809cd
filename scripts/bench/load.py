"""Pipelined clients for the benchmarks: plain DEALER sockets that keep a number of prepared requests in flight."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from gpu_server import Client, RemoteError
from gpu_server.wire import VERSION, RequestHeader, Tensor, decode_reply, encode_request

WARM_UP_S = 1.0
COOL_DOWN_S = 0.3
"""For which clients go on after the window, so that the last of it is under load too."""
ANSWER_LIMIT_S = 60.0
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
    """Run `clients` processes, and count what all are answered in one window of `seconds`; be that long against a batch.

    requests: what each sends, over and over, but each from another one on: at any time all kinds are equally under way.
    depth: how many each has in flight; 0 for all of them.
    """
    with tempfile.NamedTemporaryFile(prefix="gsb-") as file:
        # Through its pipe each would keep the next one's start waiting.
        file.write(msgspec.msgpack.encode(requests))
        file.flush()
        starts = [number * len(requests) // clients for number in range(clients)]
        pipes = [start_client(endpoint, Path(file.name), first, depth or len(requests)) for first in starts]
        for pipe in pipes:
            told(pipe, START_LIMIT_S)
    start = time.perf_counter() + WARM_UP_S
    for pipe in pipes:
        with suppress(ConnectionError):  # `told` says so below
            pipe.send((start, start + seconds))
    cpu_s = cpu_between(pid, start, start + seconds)
    answers = [told(pipe, COOL_DOWN_S + 2 * ANSWER_LIMIT_S) for pipe in pipes]
    if refused := [answer for answer in answers if isinstance(answer, str)]:
        raise SystemExit(refused[0])
    if not sum(answers):
        raise SystemExit(f"no answer within {seconds:g} s: give it more")
    return Measured(sum(answers) / seconds, cpu_s / sum(answers))


def start_client(endpoint: str, file: Path, first: int, depth: int) -> Connection:
    """Start a client process; this end of a pipe of its own, which breaks when the process ends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    spawn.Process(target=run_client, args=(endpoint, file, first, depth, theirs), daemon=True).start()
    theirs.close()
    return ours


def told(pipe: Connection, limit_s: float) -> Any:
    """What a client says next."""
    try:
        if pipe.poll(limit_s):
            return pipe.recv()
    except (EOFError, ConnectionError):
        raise SystemExit("a client process failed") from None
    raise SystemExit(f"a client process said nothing for {limit_s:g} s")


def run_client(endpoint: str, file: Path, first: int, depth: int, pipe: Connection) -> None:
    """Send `depth` requests, then one for each answer; say how many answers the window had, or what went wrong."""
    requests = msgspec.msgpack.decode(file.read_bytes(), type=list[list[bytes]])
    socket = zmq.Context().socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvtimeo = socket.sndtimeo = int(ANSWER_LIMIT_S * 1e3)
    socket.connect(endpoint)
    pipe.send("ready")
    start, stop = pipe.recv()
    try:
        pipe.send(answers_between(start, stop, socket, requests, first, depth))
    except zmq.Again:
        pipe.send(f"no answer within {ANSWER_LIMIT_S:g} s")
    os._exit(0)


def answers_between(
    start: float, stop: float, socket: zmq.Socket[bytes], requests: list[list[bytes]], first: int, depth: int
) -> int | str:
    """How many answers the window had, or what was refused."""
    for sent in range(depth):
        socket.send_multipart(numbered(requests[(first + sent) % len(requests)], sent))
    count, sent = 0, depth
    while time.perf_counter() < stop + COOL_DOWN_S:
        reply = socket.recv_multipart()
        if len(reply) == REFUSAL_FRAMES:
            return refusal(reply)
        socket.send_multipart(numbered(requests[(first + sent) % len(requests)], sent))
        sent += 1
        count += start <= time.perf_counter() < stop
    return count


def cpu_between(pid: int, start: float, stop: float) -> float:
    """CPU seconds of a process between two moments of `time.perf_counter`, which is the same in all processes on Linux."""
    time.sleep(max(0.0, start - time.perf_counter()))
    before = cpu_seconds(pid)
    time.sleep(max(0.0, stop - time.perf_counter()))
    return cpu_seconds(pid) - before


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
