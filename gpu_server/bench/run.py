"""Starts the client processes, begins them together, and adds up what they tell."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from gpu_server.bench.plan import Failed, Plan, Progress, Ready, Result, Start, Told
from gpu_server.bench.report import Report, report
from gpu_server.errors import GPUServerError

LINE_BYTES = 16 << 20
START_IN_S = 0.05
SHOW_EVERY_S = 0.2
Show = Callable[[str, float], None]


class BenchFailed(GPUServerError):
    """The run could not begin or could not end."""


async def bench(plan: Plan, show: Show) -> Report:
    """Carry out a plan. show: called with a line of text and the share that is done. Raises BenchFailed."""
    clients: list[Client] = []
    try:
        for number in range(plan.processes):
            clients.append(await Client.start(plan.share(number)))
        await asyncio.gather(*(client.ready() for client in clients))
        return await _measured(plan, clients, show)
    finally:
        for client in clients:
            await client.end()


class Client:
    """One client process."""

    def __init__(self, process: Process) -> None:
        self.progress = Progress(0, 0)
        self._process = process

    @classmethod
    async def start(cls, plan: Plan) -> Client:
        """Start it and tell it its plan."""
        paths = os.pathsep.join(path for path in sys.path if path)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gpu_server.bench.client"),
            stdin=PIPE,
            stdout=PIPE,
            limit=LINE_BYTES,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,
        )
        client = cls(process)
        client.tell(plan)
        return client

    def tell(self, told: Plan | Start) -> None:
        """One line to it."""
        assert self._process.stdin
        self._process.stdin.write(msgspec.json.encode(told) + b"\n")

    async def ready(self) -> None:
        """Return once its connections are open. Raises BenchFailed."""
        if not isinstance(await self._next(), Ready):
            raise BenchFailed("a client process began before it was told")

    async def result(self) -> Result:
        """What it measured, once it has; keeps its progress until then. Raises BenchFailed."""
        while not isinstance(told := await self._next(), Result):
            if isinstance(told, Progress):
                self.progress = told
        return told

    async def end(self) -> None:
        """Make sure that it has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _next(self) -> Told:
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            raise BenchFailed("a client process ended before its time")
        told: Told = msgspec.json.decode(line, type=Told)
        if isinstance(told, Failed):
            raise BenchFailed(told.reason)
        return told


async def _measured(plan: Plan, clients: Sequence[Client], show: Show) -> Report:
    begin = time.monotonic() + START_IN_S
    for client in clients:
        client.tell(Start(begin))
    watching = asyncio.ensure_future(_watch(plan, clients, begin, show))
    busy = asyncio.ensure_future(_busy(plan, begin))
    try:
        results = await asyncio.gather(*(client.result() for client in clients))
        return report(plan, results, await busy)
    finally:
        watching.cancel()
        busy.cancel()


async def _watch(plan: Plan, clients: Sequence[Client], begin: float, show: Show) -> None:
    """Show the phase, the rate of the last moment, and the errors."""
    whole = plan.warm_up_s + plan.duration_s
    before, at = 0, begin
    while True:
        await asyncio.sleep(SHOW_EVERY_S)
        answers, errors = (sum(getattr(c.progress, name) for c in clients) for name in ("answers", "errors"))
        now = time.monotonic()
        passed = now - begin
        phase = "warm-up" if passed < plan.warm_up_s else "measuring" if passed < whole else "last answers"
        show(
            f"{phase}: {(answers - before) / (now - at):,.0f} requests/s, {errors:,} errors",
            min(1.0, passed / whole),
        )
        before, at = answers, now


async def _busy(plan: Plan, begin: float) -> float:
    """Share of this machine's CPU that is in use during the window."""
    await asyncio.sleep(begin + plan.warm_up_s - time.monotonic())
    used, whole = cpu_ticks()
    await asyncio.sleep(plan.duration_s)
    used_then, whole_then = cpu_ticks()
    return (used_then - used) / max(1, whole_then - whole)


def cpu_ticks() -> tuple[int, int]:
    """Clock ticks that all CPUs were in use, and all ticks, since the machine started."""
    user, nice, system, idle, wait, *rest = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    used = user + nice + system + sum(rest)
    return used, used + idle + wait
