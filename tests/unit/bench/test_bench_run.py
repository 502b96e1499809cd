"""The whole command against a small server on this machine: counts and lower bounds, which no slow machine can break."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running_daemon import clean_environment

SLOW_S = 0.05
TRIES = 5
"""Of windows each twice as long as the last: the machine may stand still for all of one."""


class Server:
    """Answers 200 at once; each fifth request takes SLOW_S. The path chooses other ways.

    /close: the connection is closed after each answer. /busy: 429. /cut: the connection ends without an answer.
    /never: no answer.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.bodies: list[bytes] = []
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = head[0].split()[1]
        length = next(int(line.split(":")[1]) for line in head if line.startswith("Content-Length"))
        self.bodies.append(await reader.readexactly(length))
        self.requests[path] += 1
        if path == "/cut":
            return False
        if path == "/never":
            await asyncio.sleep(3600)
        if sum(self.requests.values()) % 5 == 0:
            await asyncio.sleep(SLOW_S)
        status, close = ("429 Busy", "") if path == "/busy" else ("200 OK", "")
        if path == "/close":
            close = "Connection: close\r\n"
        writer.write(f"HTTP/1.1 {status}\r\n{close}Content-Length: 2\r\n\r\n[]".encode())
        await writer.drain()
        return not close


@pytest.fixture
def serve() -> Iterator[Callable[[], Server]]:
    """Start a server, as often as one is needed."""
    with ExitStack() as running:

        def start() -> Server:
            server = Server()
            running.callback(server.close)
            return server

        yield start


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpu_server", "bench", "http", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_environment())


class Measured(NamedTuple):
    """A report, the length of its window, and the server that it is of alone."""

    report: Any
    seconds: float
    server: Server


def measured(serve: Callable[[], Server], path: str, least: int, *arguments: str, code: int = 0) -> Measured:
    """A window with at least so many requests."""
    for tried in range(TRIES):
        server, seconds = serve(), 0.5 * 2**tried
        done = bench(server.url + path, "--json", "--warm-up", "0", "--duration", f"{seconds}", *arguments)
        assert done.returncode in (0, 1), done.stderr
        report = json.loads(done.stdout)
        if sum(row["requests"] for row in report["outcomes"].values()) >= least:
            break
    assert done.returncode == code, done.stderr
    return Measured(report, seconds, server)


@pytest.fixture
def body(tmp_path: Path) -> str:
    path = tmp_path / "body.json"
    path.write_text('{"a": 1}')
    return str(path)


def test_closed_loop_counts_what_the_server_answered(serve: Callable[[], Server]) -> None:
    options = ("--connections", "3", "--processes", "2", "--texts", "2")
    report, seconds, server = measured(serve, "/embed", 20, *options)
    count = report["latency"]["requests"]
    # Three requests at most are under way at the end.
    assert server.requests["/embed"] - 3 <= count <= server.requests["/embed"]
    assert server.connections == 3
    assert report["requests_per_s"] == pytest.approx(count / seconds)
    assert report["texts_per_s"] == pytest.approx(count / seconds * 2)
    assert report["latency"]["max_s"] >= SLOW_S
    assert all(len(json.loads(body)["inputs"]) == 2 for body in server.bodies)


def test_one_connection_sees_each_fifth_request_slow(serve: Callable[[], Server]) -> None:
    report = measured(serve, "/embed", 50, "--connections", "1").report
    assert report["latency"]["p95_s"] >= SLOW_S
    assert report["latency"]["mean_s"] >= SLOW_S / 5 * 0.9


def test_open_loop_offers_and_answers_every_request(serve: Callable[[], Server]) -> None:
    options = ("--rate", "200", "--connections", "4")
    report, seconds, server = measured(serve, "/v1/embeddings", 20, *options)
    assert report["latency"]["requests"] == server.requests["/v1/embeddings"] >= 20
    assert report["offered_per_s"] == pytest.approx(server.requests["/v1/embeddings"] / seconds)
    assert report["loop"] == "open"


def test_a_server_that_closes_is_asked_on_new_connections(serve: Callable[[], Server], body: str) -> None:
    report, _, server = measured(serve, "/close", 20, "--connections", "2", "--body", body)
    assert set(report["outcomes"]) == {"200"}
    assert server.connections >= report["latency"]["requests"] >= 20
    assert report["texts_per_s"] == 0


@pytest.mark.parametrize(
    ("path", "timeout_s", "outcome"),
    [("/busy", "30", "429"), ("/cut", "30", "connection lost"), ("/never", "0.2", "timeout")],
)
def test_a_run_without_a_good_answer_says_how_and_exits_with_1(
    serve: Callable[[], Server], body: str, path: str, timeout_s: str, outcome: str
) -> None:
    options = ("--timeout", timeout_s, "--connections", "2", "--rate", "20", "--body", body)
    report = measured(serve, path, 2, *options, code=1).report
    assert set(report["outcomes"]) == {outcome}
    assert report["latency"]["requests"] == 0


def test_the_table_is_for_people(serve: Callable[[], Server]) -> None:
    for seconds in (0.2, 2, 8):
        url = f"{serve().url}/embed"
        done = bench(url, "--duration", f"{seconds}", "--warm-up", "0")
        if done.returncode == 0:
            break
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{url}: closed loop, 32 connections, {seconds} s\n")
    assert "requests/s" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["localhost:8000"], 2, "is not a URL"),
        (["http://127.0.0.1:1/embed"], 1, "cannot connect to 127.0.0.1:1: Connection refused"),
        (["http://127.0.0.1:1/x"], 78, "no body is known for /x"),
        (["http://127.0.0.1:1/embed", "-H", "nope"], 2, "is not a header"),
        (["http://127.0.0.1:1/embed", "-H", "A: b\r\nC: d"], 2, "is not a header"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], code: int, said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
