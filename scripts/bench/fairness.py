"""How a bulk client and an overload touch the others: a real daemon before an engine of known speed.

    python scripts/bench/fairness.py [--seconds 10]

The model sleeps `FIXED_S + TOKEN_S · tokens` for each batch, as BERT-base takes on an H200 (docs/performance.md): a known
speed that uses no processor.
First: the p99 of single texts with and without a client that keeps 10,000 texts queued. The goal is at most 3.
Second: goodput (answers within their deadline) and the p99 of accepted requests, offered 3 times what the engine can do,
beside the most that it can do. The goals are at least 0.95 and at most the deadline.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import load
import numpy as np
import zmq

from gpu_server import Client
from gpu_server.wire import VERSION, RequestHeader, Tensor, decode_reply, encode_request

FIXED_S = 273e-6
TOKEN_S = 0.366e-6
MAX_BATCH_TOKENS = 16_384
TOKENS = 32
BULK_TEXTS = 500
QUEUED_TEXTS = 10_000
DEADLINE_MS = 1000
TEXTS = 256
"""Texts of a request in the overload."""
MODEL = f"""
import time, torch

class Sleeper:
    inputs = {{"input_ids": ("i32", (-1,))}}
    cost = "input_ids"
    max_batch_tokens = {MAX_BATCH_TOKENS}

    def load(self, device):
        self.rows = torch.zeros(4096, 8)

    def collate(self, inputs, device):
        ids = inputs["input_ids"]
        return ids.items, sum(ids.lengths())

    def forward(self, batch):
        time.sleep({FIXED_S} + {TOKEN_S} * batch[1])
        return {{"embedding": self.rows[:batch[0]]}}
"""


class Peer:
    """One connection that sends prepared requests and times their replies."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.connect(endpoint)
        self._sent: dict[bytes, float] = {}
        self._count = 0

    def send(self, texts: int, deadline_ms: int) -> None:
        """Ask for `texts` texts of `TOKENS` tokens."""
        self._count += 1
        header = RequestHeader(v=VERSION, id=b"%d" % self._count, op="infer", deadline_ms=deadline_ms)
        self._sent[header.id] = time.perf_counter()
        self._socket.send_multipart(encode_request(header, {"input_ids": rows(texts)}))

    def receive(self, wait_s: float) -> tuple[str, float] | None:
        """The code of an error ("" for an answer) and the seconds it took; None if nothing comes."""
        if not self._socket.poll(max(0, int(wait_s * 1000))):
            return None
        header, _ = decode_reply(self._socket.recv_multipart())
        took = time.perf_counter() - self._sent.pop(header.id)
        return (header.error.code if header.error else ""), took

    def close(self) -> None:
        """Free the connection."""
        self._socket.close()
        self._context.term()


def rows(texts: int) -> Tensor:
    """Ids of `texts` texts."""
    flat = np.zeros(texts * TOKENS, np.int32)
    return Tensor("i32", (texts, -1), flat.tobytes(), list(range(0, texts * TOKENS + 1, TOKENS)))


def single_texts(endpoint: str, seconds: float) -> list[float]:
    """Seconds that each of many single texts took, asked one after another with pauses."""
    peer, dice, took = Peer(endpoint), random.Random(1), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        peer.send(1, 30_000)
        reply = peer.receive(30)
        assert reply is not None and not reply[0], reply
        took.append(reply[1])
        time.sleep(dice.expovariate(1 / 0.01))
    peer.close()
    return took


def keep_queued(endpoint: str, stop: threading.Event, full: threading.Event) -> None:
    """Keep `QUEUED_TEXTS` texts waiting, in requests of `BULK_TEXTS`."""
    peer = Peer(endpoint)
    for _ in range(QUEUED_TEXTS // BULK_TEXTS):
        peer.send(BULK_TEXTS, 600_000)
    full.set()
    while not stop.is_set():
        reply = peer.receive(0.1)
        if reply is not None:
            assert not reply[0], reply
            peer.send(BULK_TEXTS, 600_000)
    peer.close()


def fairness(endpoint: str, seconds: float) -> None:
    """Print the p99 of single texts without and with the bulk client."""
    single_texts(endpoint, 1)
    alone = single_texts(endpoint, seconds)
    stop, full = threading.Event(), threading.Event()
    bulk = threading.Thread(target=keep_queued, args=(endpoint, stop, full))
    bulk.start()
    full.wait()
    time.sleep(0.5)
    beside = single_texts(endpoint, seconds)
    with Client(endpoint) as client:
        queued = client.status().queue.items
    stop.set()
    bulk.join()
    busy = batch_s(MAX_BATCH_TOKENS)
    print(f"one text, alone:            p50 {ms(alone, 0.5)}, p99 {ms(alone, 0.99)}  ({len(alone)} texts)")
    print(
        f"beside {queued:,} queued texts: p50 {ms(beside, 0.5)}, p99 {ms(beside, 0.99)}  ({len(beside)} texts)"
    )
    print(
        f"a full batch runs {busy * 1e3:.1f} ms; ratio of the p99s {quantile(beside, 0.99) / quantile(alone, 0.99):.2f}"
    )


def overload(endpoint: str, seconds: float) -> None:
    """Print goodput at the most the engine can do, and offered 3 times that."""
    capacity = MAX_BATCH_TOKENS / batch_s(MAX_BATCH_TOKENS) / TOKENS / TEXTS
    offer(endpoint, capacity, 2)
    peak, _, _ = offer(endpoint, 1.0 * capacity, seconds)
    good, took, codes = offer(endpoint, 3.0 * capacity, seconds)
    print(f"capacity {capacity:.0f} requests of {TEXTS} texts a second, deadline {DEADLINE_MS} ms")
    print(f"offered 1x: {peak:.0f}/s in time; offered 3x: {good:.0f}/s in time ({good / peak:.2f}), ")
    print(f"  p50 {ms(took, 0.5)}, p99 {ms(took, 0.99)} of accepted; others: {codes}")


def offer(endpoint: str, rate: float, seconds: float) -> tuple[float, list[float], dict[str, int]]:
    """Poisson arrivals at `rate`: answers in time a second, seconds of each accepted request, errors by code."""
    peer, dice = Peer(endpoint), random.Random(2)
    took: list[float] = []
    codes: dict[str, int] = {}
    begin = due = time.perf_counter()
    end = begin + seconds
    while (now := time.perf_counter()) < end:
        while due <= now:
            peer.send(TEXTS, DEADLINE_MS)
            due += dice.expovariate(rate)
        count(peer.receive(max(0.0, due - time.perf_counter())), took, codes)
    in_time = sum(t <= DEADLINE_MS / 1e3 for t in took)
    while (reply := peer.receive(DEADLINE_MS / 1e3 + 0.5)) is not None:
        count(reply, took, codes)
    peer.close()
    return in_time / seconds, took, codes


def count(reply: tuple[str, float] | None, took: list[float], codes: dict[str, int]) -> None:
    """Note one reply: a refused request was never accepted."""
    if reply is None:
        return
    code, seconds = reply
    if code != "overloaded":
        took.append(seconds)
    if code:
        codes[code] = codes.get(code, 0) + 1


def batch_s(tokens: int) -> float:
    """What a batch of so many tokens runs."""
    return FIXED_S + TOKEN_S * tokens


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of them lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def ms(values: Sequence[float], part: float) -> str:
    """A quantile for people."""
    return f"{quantile(values, part) * 1e3:.1f} ms"


def main() -> None:
    """Run both parts against one daemon."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gsb-") as folder:
        endpoint = f"ipc://{folder}/s"
        (Path(folder) / "sleeper.py").write_text(MODEL)
        daemon = load.start_daemon("sleeper:Sleeper", endpoint, "--threads", "1", folder=Path(folder))
        try:
            fairness(endpoint, options.seconds)
            overload(endpoint, options.seconds)
        finally:
            daemon.terminate()
            daemon.wait()


if __name__ == "__main__":
    main()
