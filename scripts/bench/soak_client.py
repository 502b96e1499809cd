"""One client process of scripts/bench/soak.py: requests over HTTP and through `AsyncClient`, each answer compared.

It reads its `Work` as a line of JSON and writes a `Told` at the end of every period, and one more when nothing is open.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from gpu_server import AsyncClient, RemoteError
from gpu_server.bench.bodies import requests
from gpu_server.bench.client import FineSelector
from gpu_server.bench.connection import Connection
from gpu_server.bench.histogram import Histogram
from gpu_server.bench.loops import ClosedLoop, OpenLoop, Sender, Tally
from gpu_server.bench.plan import Plan

TICK_S = 0.1
SAME_COSINE = 0.999
WRONG = "WRONG"
Outcomes = dict[str, Histogram]


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a client process does; times are the machine's monotonic clock.

    bodies: a .jsonl file of the requests. wanted: an .npy file `[requests, texts, dimensions]` of their right answers.
    rates: requests a second over HTTP and direct; 0 is a closed loop. senders: most requests open at once, likewise.
    """

    url: str
    endpoint: str
    bodies: str
    wanted: str
    senders: tuple[int, int]
    rates: tuple[float, float]
    begins_s: float
    period_s: float
    periods: int
    timeout_s: float
    seed: int


class Told(msgspec.Struct, frozen=True):
    """Latencies by outcome of the requests that ended in a period, over HTTP and direct."""

    http: Outcomes
    direct: Outcomes


class Cases:
    """The requests' texts, and whether an answer to one is right."""

    def __init__(self, work: Work) -> None:
        self.texts = [json.loads(line)["inputs"] for line in Path(work.bodies).read_text().splitlines()]
        self._wanted: np.ndarray = np.load(work.wanted)

    def judge(self, number: int, rows: Any) -> str:
        """How request `number` ended, that was answered with these rows."""
        got, wanted = np.asarray(rows, np.float32), self._wanted[number]
        if got.shape != wanted.shape:
            return WRONG
        scale = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
        return "200" if bool(((got * wanted).sum(1) >= SAME_COSINE * scale).all()) else WRONG


class HTTPSender(Connection):
    """A connection that keeps each answer's body and looks at it."""

    def __init__(
        self, plan: Plan, numbers: dict[bytes, int], cases: Cases, ended: Callable[[Sender, str], None]
    ) -> None:
        super().__init__(
            plan.target.hostname or "",
            plan.target.port or 80,
            None,
            lambda _, outcome: ended(self, self._judged(outcome)),
        )
        self._numbers = numbers
        self._cases = cases
        self._raw = b""
        self._request = b""

    def send(self, request: bytes, since_s: float) -> None:
        """As a connection's."""
        self._request, self._raw = request, b""
        super().send(request, since_s)

    def received(self, data: bytes) -> None:
        """As a connection's."""
        self._raw += data
        super().received(data)

    def _judged(self, outcome: str) -> str:
        if outcome != "200":
            return outcome
        body = self._raw.partition(b"\r\n\r\n")[2]
        return self._cases.judge(self._numbers[self._request], orjson.loads(body))


class DirectSender:
    """Sends one request at a time through a client that others share; a request is its number, as bytes."""

    def __init__(self, client: AsyncClient, cases: Cases, ended: Callable[[Sender, str], None]) -> None:
        self.since_s = 0.0
        self._client = client
        self._cases = cases
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    def send(self, request: bytes, since_s: float) -> None:
        """Send a request whose waiting time began at `since_s`."""
        self.since_s = since_s
        self._task = asyncio.ensure_future(self._ask(int(request)))

    async def _ask(self, number: int) -> None:
        try:
            outcome = self._cases.judge(number, await self._client.embed(self._cases.texts[number]))
        except RemoteError as error:
            outcome = error.code
        self._ended(self, outcome)


class Kind:
    """The requests of one kind: their tally, and the loop that sends them."""

    def __init__(self, work: Work, made: list[bytes], rate: float, seed: int) -> None:
        clock = asyncio.get_running_loop()
        self.tally = Tally(work.begins_s, work.begins_s + work.period_s * work.periods)
        draw = random.Random(seed)
        draw.shuffle(made)
        self.loop: ClosedLoop | OpenLoop = (
            OpenLoop(self.tally, made, clock, rate, draw) if rate else ClosedLoop(self.tally, made, clock)
        )

    def ended(self, sender: Sender, outcome: str) -> None:
        """A request has ended."""
        self.loop.ended(sender, outcome)

    def take(self) -> Outcomes:
        """What has ended since the last time."""
        taken, self.tally.outcomes = self.tally.outcomes, {}
        return taken


async def run(work: Work) -> None:
    """Carry the work out."""
    plan = Plan(url=work.url, connections=work.senders[0], body_file=work.bodies)
    cases, made = Cases(work), requests(plan)
    numbers = {request: number for number, request in enumerate(made)}
    http = Kind(work, made, work.rates[0], work.seed)
    direct = Kind(work, [b"%d" % n for n in range(len(cases.texts))], work.rates[1], work.seed + 1)
    connections = [HTTPSender(plan, numbers, cases, http.ended) for _ in range(work.senders[0])]
    async with AsyncClient(work.endpoint, timeout_s=work.timeout_s) as client:
        callers = [DirectSender(client, cases, direct.ended) for _ in range(work.senders[1])]
        await asyncio.sleep(work.begins_s - asyncio.get_running_loop().time())
        http.loop.start(connections)
        direct.loop.start(callers)
        for period in range(1, work.periods + 1):
            await _until(work, work.begins_s + period * work.period_s, connections, (http, direct))
            tell(Told(http.take(), direct.take()))
        while not (http.loop.drained and direct.loop.drained):
            await _until(work, asyncio.get_running_loop().time() + TICK_S, connections, (http, direct))
        tell(Told(http.take(), direct.take()))
    for connection in connections:
        connection.close()


async def _until(work: Work, end_s: float, connections: list[HTTPSender], kinds: tuple[Kind, Kind]) -> None:
    """Let the loops run until then, and give up what has waited for too long."""
    clock = asyncio.get_running_loop()
    while (now := clock.time()) < end_s:
        await asyncio.sleep(min(TICK_S, end_s - now))
        before_s = clock.time() - work.timeout_s
        for kind in kinds:
            kind.loop.expire(before_s)
        for connection in connections:
            connection.expire(before_s)


def tell(told: Told) -> None:
    """One line to the process that started this one."""
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Read the work and do it."""
    work = msgspec.json.decode(sys.stdin.buffer.readline(), type=Work)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(FineSelector())) as runner:
        runner.run(run(work))


if __name__ == "__main__":
    main()
