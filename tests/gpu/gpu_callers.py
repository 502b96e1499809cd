"""Embeds texts whose right answers are known, at load, in a process of its own: what holds up the test is not measured.

    gpu_callers.py ENDPOINT THREADS SHARE

Measures what its threads reach when all are busy and says so in a line; then asks SHARE of that a second, or with 0 goes
on as before, until its input ends, and writes what became of each request as JSON, one `Asked` each.
"""

from __future__ import annotations

import gc
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpu_server.bench.bodies import WORDS
from gpu_server.client import Client
from gpu_server.errors import RemoteError

TEXTS = 64
TEXTS_A_REQUEST = 4
MEASURE_S = 3.0


class Asked(NamedTuple):
    """One request: when it was due on the monotonic clock, seconds from then to its outcome."""

    due: float
    took: float
    outcome: str


class Callers:
    """Threads that ask `rate` times a second whatever the answers do, or, with a rate of 0, each after its last answer.

    ask: gets the request's number and tells its outcome in a word.
    """

    def __init__(self, ask: Callable[[int], str], threads: int, rate: float) -> None:
        self.asked: list[Asked] = []
        self._ask = ask
        self._rate = rate
        self._numbers = itertools.count()
        self._begun = time.monotonic()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            due = self._begun + number / self._rate if self._rate else time.monotonic()
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            outcome = self._ask(number)
            self.asked.append(Asked(due, time.monotonic() - due, outcome))

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


class Embedding:
    """Requests of texts whose right answers were taken before, one text at a time."""

    def __init__(self, client: Client) -> None:
        draw = random.Random(3)
        self._client = client
        self._texts = [" ".join(draw.choices(WORDS, k=draw.randrange(3, 60))) for _ in range(TEXTS)]
        self._wanted = np.concatenate([client.embed(text) for text in self._texts])
        others = self._wanted @ self._wanted.T - 2 * np.eye(TEXTS)
        assert others.max() < 0.99, "two texts are too alike to notice that they changed places"

    def ask(self, number: int) -> str:
        """How request `number` ended."""
        at = [(number * 7 + k) % TEXTS for k in range(TEXTS_A_REQUEST)]
        try:
            got = self._client.embed([self._texts[i] for i in at])
        except RemoteError as error:
            return error.code
        worst = float((got * self._wanted[at]).sum(1).min())
        return "right" if worst >= 0.999 else f"wrong: cosine {worst:.4f}"


def main(endpoint: str, threads: int, share: float) -> None:
    """Measure, then ask until the input ends."""
    # A collection walks all that was noted so far, for longer with every request.
    gc.disable()
    with Client(endpoint, timeout_s=60) as client:
        embedding = Embedding(client)
        with Callers(embedding.ask, threads, rate=0.0) as closed:
            time.sleep(MEASURE_S)
        capacity = len(closed.asked) / MEASURE_S
        with Callers(embedding.ask, threads, rate=share * capacity) as callers:
            print(capacity, flush=True)
            sys.stdin.read()
    json.dump(callers.asked, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
