"""The load of scripts/bench/soak.py: requests with their right answers, and the client processes that send them."""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from soak_client import Told, Work
from soak_stack import ROOT, Stack

from gpu_server import Client
from gpu_server.bench.bodies import text

HERE = Path(__file__).parent
CASES = 128
TIMEOUT_S = 30.0
SETTLE_S = 4.0
"""What client processes get to start in."""
TELL_LIMIT_S = 60.0


def write_cases(client: Client, folder: Path, texts: int) -> tuple[Path, Path]:
    """Files of requests and of their right answers, each text embedded alone by the idle server."""
    draw = random.Random(11)
    requests = [[text(draw, 20.0, 0.9) for _ in range(texts)] for _ in range(CASES)]
    bodies, wanted = folder / "bodies.jsonl", folder / "wanted.npy"
    bodies.write_text("".join(json.dumps({"inputs": texts}) + "\n" for texts in requests))
    np.save(wanted, np.stack([np.concatenate([client.embed([one]) for one in texts]) for texts in requests]))
    return bodies, wanted


class Load:
    """The client processes."""

    def __init__(self, options: argparse.Namespace, stack: Stack, bodies: Path, wanted: Path) -> None:
        self._processes = options.processes
        self._callers = max(1, options.callers // options.processes)
        self._measure_s = options.measure_s
        self._stack = stack
        self._bodies = bodies
        self._wanted = wanted

    def capacity(self) -> tuple[float, float]:
        """Right answers a second with every caller busy, over HTTP and direct; the first seconds do not count."""
        with self.running((0.0, 0.0), time.monotonic() + SETTLE_S, self._measure_s / 2, 2) as clients:
            told = [[read(client) for client in clients] for _ in range(2)][1]
        rates = [
            sum(kind["200"].count for kind in kinds if "200" in kind) / (self._measure_s / 2)
            for kinds in ([one.http for one in told], [one.direct for one in told])
        ]
        if not all(rates):
            ways = {way for one in told for way in (*one.http, *one.direct)}
            raise SystemExit(
                f"nothing can be measured: requests end in {ways}\n{self._stack.log.read_text()[-3000:]}"
            )
        return rates[0], rates[1]

    @contextmanager
    def running(
        self, rates: tuple[float, float], begins_s: float, period_s: float, periods: int
    ) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Client processes with these rates over all of them; they have ended afterwards."""
        clients = []
        try:
            for number in range(self._processes):
                clients.append(self._start(number, rates, begins_s, period_s, periods))
            yield clients
        finally:
            for client in clients:
                client.kill()
                client.communicate()

    def _start(
        self, number: int, rates: tuple[float, float], begins_s: float, period_s: float, periods: int
    ) -> subprocess.Popen[bytes]:
        work = Work(
            url=self._stack.url, endpoint=self._stack.endpoint, bodies=str(self._bodies), wanted=str(self._wanted),
            senders=(self._callers, self._callers),
            rates=(rates[0] / self._processes, rates[1] / self._processes),
            begins_s=begins_s, period_s=period_s, periods=periods, timeout_s=TIMEOUT_S, seed=2 * number,
        )  # fmt: skip
        client = subprocess.Popen(
            [sys.executable, str(HERE / "soak_client.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        assert client.stdin is not None
        client.stdin.write(msgspec.json.encode(work) + b"\n")
        client.stdin.flush()
        return client


def read(client: subprocess.Popen[bytes]) -> Told:
    """The next thing that a client process tells; exits if it tells nothing."""
    assert client.stdout is not None
    readable, _, _ = select.select([client.stdout], [], [], TELL_LIMIT_S + TIMEOUT_S)
    line = client.stdout.readline() if readable else b""
    if not line:
        raise SystemExit("a client process ended before its time, or hangs")
    return msgspec.json.decode(line, type=Told)
