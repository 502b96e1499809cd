"""One client process: `python -m gpu_server.bench.client`, a plan on its input, what it measured on its output."""

from __future__ import annotations

import asyncio
import os
import random
import select
import selectors
import ssl
import sys
import time

import msgspec

from gpu_server.bench.bodies import requests
from gpu_server.bench.connection import Connection
from gpu_server.bench.histogram import Histogram
from gpu_server.bench.loops import ClosedLoop, OpenLoop, Tally
from gpu_server.bench.plan import Failed, Plan, Progress, Ready, Result, Start, Told

TICK_S = 0.02
TICKS_A_REPORT = 10


class FineSelector(selectors.EpollSelector):
    """Waits in microseconds; epoll alone rounds up to milliseconds, by which every request would be late."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As a selector's."""
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class Client:
    """The connections of one process and the loop that drives them; times are the machine's monotonic clock."""

    def __init__(self, plan: Plan, begins_s: float) -> None:
        self._plan = plan
        self._clock = asyncio.get_running_loop()
        self._tally = Tally(begins_s, begins_s + plan.duration_s)
        self._lag = Histogram()
        made = requests(plan)
        self._loop: ClosedLoop | OpenLoop
        if plan.rate:
            self._loop = OpenLoop(self._tally, made, self._clock, plan.rate, random.Random(plan.seed))
        else:
            self._loop = ClosedLoop(self._tally, made, self._clock)

    async def run(self, connections: list[Connection]) -> Result:
        """Send until the window ends, and wait for what counts."""
        self._loop.start(connections)
        await self._tick_until(self._tally.begins_s, connections)
        cpu_s = time.process_time()
        self._lag = Histogram()
        await self._tick_until(self._tally.ends_s, connections)
        cpu_s = time.process_time() - cpu_s
        lag = self._lag
        while not self._loop.drained:
            await self._tick_until(self._clock.time() + TICK_S, connections)
        result = Result(self._tally.outcomes, self._tally.good, cpu_s, lag, Histogram())
        if isinstance(self._loop, OpenLoop):
            late, offered, waited = self._loop.late, self._loop.offered, self._loop.waited
            result = msgspec.structs.replace(result, late=late, offered=offered, waited=waited)
        return result

    def ended(self, connection: Connection, outcome: str) -> None:
        """A request has ended."""
        self._loop.ended(connection, outcome)

    async def _tick_until(self, end_s: float, connections: list[Connection]) -> None:
        ticks = 0
        while (now := self._clock.time()) < end_s:
            due = min(end_s, now + TICK_S)
            await asyncio.sleep(due - now)
            now = self._clock.time()
            self._lag.add(max(0.0, now - due))
            self._loop.expire(now - self._plan.timeout_s)
            for connection in connections:
                connection.expire(now - self._plan.timeout_s)
            if (ticks := ticks + 1) % TICKS_A_REPORT == 0:
                tell(Progress(self._tally.answers, self._tally.errors))


async def run(plan: Plan) -> Told:
    """Connect, wait to be told to start, and measure."""
    target = plan.target
    tls = ssl.create_default_context() if target.scheme == "https" else None
    ended: list[Client] = []
    address = target.hostname or "", target.port or (443 if tls else 80)
    connections = [
        Connection(*address, tls, lambda connection, outcome: ended[0].ended(connection, outcome))
        for _ in range(plan.connections)
    ]
    try:
        for connection in connections:
            await connection.open()
    except OSError as error:
        # asyncio puts its own words where the system's would be; a name that is not found has no errno of the system.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        return Failed(f"cannot connect to {target.netloc}: {reason}")
    tell(Ready())
    line = await asyncio.to_thread(sys.stdin.buffer.readline)
    start = msgspec.json.decode(line, type=Start)
    client = Client(plan, start.at_s + plan.warm_up_s)
    ended.append(client)
    await asyncio.sleep(start.at_s - asyncio.get_running_loop().time())
    try:
        return await client.run(connections)
    finally:
        for connection in connections:
            connection.close()


def tell(told: Told) -> None:
    """One line to the process that started this one."""
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Read the plan, carry it out, tell the result."""
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(FineSelector())) as runner:
        tell(runner.run(run(plan)))


if __name__ == "__main__":
    main()
