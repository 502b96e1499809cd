"""A discrete-event simulation of batching policies before one engine whose service time is a + b·tokens."""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from gpu_server.daemon.filling import Policy
from gpu_server.daemon.request import Batch as Sent
from gpu_server.daemon.request import Request
from gpu_server.daemon.scheduler import Scheduler

MAX_BATCH_TOKENS = 16_384
MAX_BATCH_ITEMS = 2048


@dataclass(frozen=True)
class Engine:
    """The measured cost of a batch: `fixed_s + token_s · tokens`, and the gap before one that was not sent ahead.

    graphs: in tokens, ascending; a batch costs as much as the smallest that holds it. None: what its own tokens do.
    """

    fixed_s: float
    token_s: float
    gap_s: float
    noise: float = 0.0
    graphs: tuple[int, ...] = ()

    def service_s(self, tokens: int, dice: random.Random | None = None) -> float:
        """Seconds that one batch runs; with `dice`, off by a normally distributed part of `noise`."""
        if self.graphs:
            tokens = self.graphs[bisect_left(self.graphs, tokens)]
        seconds = self.fixed_s + self.token_s * tokens
        return seconds * max(0.1, dice.gauss(1.0, self.noise)) if dice else seconds

    def capacity(self, tokens_per_s: float) -> float:
        """The rate of `tokens_per_s` as a part of what full batches allow."""
        return tokens_per_s * self.service_s(MAX_BATCH_TOKENS) / MAX_BATCH_TOKENS


@dataclass(eq=False)
class Job:
    """One request: the costs of its texts, and which of them are still to be answered."""

    costs: list[int]
    arrived: float
    client: int = -1
    remaining: int = field(init=False)

    def __post_init__(self) -> None:
        self.remaining = len(self.costs)


Batch = list[tuple[Job, int, int]]
"""Parts of jobs: how many of their texts, and the tokens of those."""


class Batcher(Protocol):
    """A batching policy. `in_flight` is how many batches it has given to the engine that have not ended."""

    def submit(self, job: Job) -> None: ...

    def next_batch(self, in_flight: int) -> Batch | None: ...

    def ended(self, batch: Batch, seconds: float) -> None: ...

    def wake_at(self) -> float | None:
        """When `next_batch` may answer otherwise, though nothing has happened."""


Make = Callable[[Callable[[], float], tuple[int, ...]], Batcher]
"""A policy of a clock and an engine's graphs."""


class Ours:
    """The project's own scheduler, dispatched as the daemon does with two batches in flight."""

    def __init__(self, clock: Callable[[], float], graphs: tuple[int, ...] = ()) -> None:
        self._scheduler = Scheduler(clock, max_items=1 << 30, max_bytes=1 << 40)
        self._scheduler.set_policy("m", Policy(MAX_BATCH_TOKENS, MAX_BATCH_ITEMS, graphs=graphs))
        self._clock = clock
        self._jobs: dict[Request, Job] = {}
        self._sent: deque[Sent] = deque()

    def submit(self, job: Job) -> None:
        request = Request(
            peer=b"%d" % job.client, id=b"", model="m", inputs={}, params={}, priority=1,
            cumulative=[0, *itertools.accumulate(job.costs)],
            arrived=job.arrived, deadline=float("inf"), group=("m",),
        )  # fmt: skip
        self._jobs[request] = job
        self._scheduler.submit(request)

    def next_batch(self, in_flight: int) -> Batch | None:
        if in_flight >= 2:
            return None
        batch = self._scheduler.due_batch(self._sent)
        if batch is None:
            return None
        batch.sent = self._clock()
        self._sent.append(batch)
        return [
            (self._jobs[request], stop - start, request.cumulative[stop] - request.cumulative[start])
            for request, start, stop in batch.slices
        ]

    def ended(self, batch: Batch, seconds: float) -> None:
        sent = self._sent.popleft()
        self._scheduler.learn(sent, seconds)
        for request, start, stop in sent.slices:
            request.remaining -= stop - start
            if not request.remaining:
                del self._jobs[request]
                self._scheduler.close(request)

    def wake_at(self) -> float | None:
        return self._scheduler.due_at


class Fifo:
    """Texts one by one in the order of arrival: what both rivals have in common. They know of no graphs."""

    def __init__(self, clock: Callable[[], float], graphs: tuple[int, ...] = ()) -> None:
        self._clock = clock
        self._texts: deque[tuple[Job, int]] = deque()

    def submit(self, job: Job) -> None:
        self._texts.extend((job, cost) for cost in job.costs)

    def ended(self, batch: Batch, seconds: float) -> None: ...

    def _take(self, max_tokens: int, max_items: int) -> Batch | None:
        batch: Batch = []
        tokens = 0
        while self._texts and len(batch) < max_items and tokens + self._texts[0][1] <= max_tokens:
            job, cost = self._texts.popleft()
            batch.append((job, 1, cost))
            tokens += cost
        return batch or None


class OneAhead(Fifo):
    """As Text-Embeddings-Inference: what waits is frozen into the next batch while the engine runs the one before."""

    def next_batch(self, in_flight: int) -> Batch | None:
        return self._take(MAX_BATCH_TOKENS, 1 << 30) if in_flight < 2 else None

    def wake_at(self) -> float | None:
        return None


class CountAndWindow(Fifo):
    """A batch of a fixed number of texts, or of fewer once the oldest has waited for a window of time."""

    count = 32
    window_s = 0.005

    def next_batch(self, in_flight: int) -> Batch | None:
        if in_flight >= 2 or not self._texts:
            return None
        if len(self._texts) < self.count and self._clock() < self._due():
            return None
        return self._take(MAX_BATCH_TOKENS, self.count)

    def wake_at(self) -> float | None:
        return self._due() if self._texts else None

    def _due(self) -> float:
        return self._texts[0][0].arrived + self.window_s


@dataclass(frozen=True)
class Workload:
    """What is asked: a share of requests are bulk ones of many texts, the others hold one; lengths are lognormal.

    connections: how many the clients of a closed loop share; 0: each has its own.
    """

    bulk_share: float
    bulk_texts: int
    connections: int = 0

    def jobs(self, dice: random.Random) -> Iterator[list[int]]:
        """The costs of one request after another."""
        while True:
            texts = self.bulk_texts if dice.random() < self.bulk_share else 1
            yield [min(512, max(3, int(dice.lognormvariate(3.69, 0.8)))) for _ in range(texts)]


@dataclass
class Seen:
    """What one run gave: seconds that each request took, of one text and of many, texts a second, tokens a batch."""

    single: list[float]
    bulk: list[float]
    rate: float
    batch_tokens: float


@dataclass(frozen=True)
class Interactive:
    """One client asks for a text of `tokens`, and after a pause again; another keeps `kept` requests of many outstanding."""

    kept: int
    bulk_texts: int = 500
    pause_s: float = 0.01
    tokens: int = 32


class Simulation:
    """One policy before one engine; time passes from event to event.

    seed: of what is asked, of when, and of how far each batch is off its time: policies with the same are compared in pairs.
    """

    def __init__(self, make: Make, engine: Engine, seed: int = 0) -> None:
        self._now = 0.0
        self._seed = seed
        self._engine = engine
        self._batcher = make(lambda: self._now, engine.graphs)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._given: deque[tuple[Batch, float]] = deque()
        self._answered = 0
        self._tokens: list[int] = []
        self._dice = random.Random(seed)
        self._single: list[float] = []
        self._bulk: list[float] = []
        self._on_done: Callable[[Job], None] = lambda job: None

    def closed(self, clients: int, workload: Workload, requests: int) -> Seen:
        """`clients` that each send the next request when the last is answered, on average `CLIENT_S` later."""
        jobs = workload.jobs(random.Random(f"{self._seed} asked"))
        pauses = random.Random(f"{self._seed} pauses")

        def send(peer: int) -> None:
            self._submit(Job(next(jobs), self._now, peer))

        def done(job: Job) -> None:
            self._at(self._now + pauses.expovariate(1 / CLIENT_S), lambda: send(job.client))

        self._on_done = done
        for client in range(clients):
            peer = client % (workload.connections or clients)
            self._at(client * 1e-5, lambda peer=peer: send(peer))  # type: ignore[misc]
        return self._run(requests)

    def open(self, load: float, workload: Workload, requests: int) -> Seen:
        """Poisson arrivals at `load` of the tokens a second that full batches allow."""
        dice = random.Random(f"{self._seed} asked")
        jobs = workload.jobs(dice)
        sample = [next(workload.jobs(random.Random(n))) for n in range(2000)]
        tokens = sum(map(sum, sample)) / len(sample)
        rate = load / self._engine.capacity(tokens)
        peers = itertools.count()

        def arrive() -> None:
            self._submit(Job(next(jobs), self._now, next(peers)))
            self._at(self._now + dice.expovariate(rate), arrive)

        self._at(0.0, arrive)
        return self._run(requests)

    def interactive(self, who: Interactive, requests: int) -> Seen:
        """One client of single texts that pauses between them, beside one that keeps requests of many outstanding."""
        dice = random.Random(1)

        def send(client: int) -> None:
            texts = who.bulk_texts if client == BULK_CLIENT else 1
            self._submit(Job([who.tokens] * texts, self._now, client))

        def done(job: Job) -> None:
            pause = CLIENT_S if job.client == BULK_CLIENT else who.pause_s * dice.expovariate(1)
            self._at(self._now + pause, lambda: send(job.client))

        self._on_done = done
        for client in [BULK_CLIENT] * who.kept + [BULK_CLIENT + 1]:
            self._at(0.0, lambda client=client: send(client))  # type: ignore[misc]
        return self._run(requests)

    def _run(self, requests: int) -> Seen:
        """Go on until so many requests have been answered, after a tenth more that do not count."""
        self._until(requests // 10)
        start, texts = self._now, self._answered
        self._single, self._bulk, self._tokens = [], [], []
        self._until(requests)
        rate = (self._answered - texts) / (self._now - start)
        return Seen(self._single, self._bulk, rate, sum(self._tokens) / len(self._tokens))

    def _until(self, requests: int) -> None:
        while len(self._single) + len(self._bulk) < requests:
            self._now, _, event = heapq.heappop(self._events)
            event()
            self._dispatch()

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _submit(self, job: Job) -> None:
        self._batcher.submit(job)

    def _dispatch(self) -> None:
        while (batch := self._batcher.next_batch(len(self._given))) is not None:
            seconds = self._engine.service_s(sum(tokens for _, _, tokens in batch), self._dice)
            if not self._given:
                self._at(self._now + self._engine.gap_s + seconds, self._ended)
            self._given.append((batch, seconds))
        wake = self._batcher.wake_at()
        if wake is not None and wake > self._now and len(self._given) < 2:
            self._at(wake, lambda: None)

    def _ended(self) -> None:
        batch, seconds = self._given.popleft()
        if self._given:
            self._at(self._now + self._given[0][1], self._ended)
        self._batcher.ended(batch, seconds)
        self._tokens.append(sum(tokens for _, _, tokens in batch))
        for job, texts, _ in batch:
            job.remaining -= texts
            self._answered += texts
            if not job.remaining:
                self._finish(job)

    def _finish(self, job: Job) -> None:
        (self._single if len(job.costs) == 1 else self._bulk).append(self._now - job.arrived)
        self._on_done(job)


CLIENT_S = 0.0001
"""What a client of the closed loop needs, on average, between an answer and its next request."""
BULK_CLIENT = 0
