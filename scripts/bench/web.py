"""Worker CPU per request: the hot route against the same route in plain Flask, over an engine that answers at once.

    .venv/bin/python scripts/bench/web.py [--seconds 4] [--rounds 3] [--only "gthread 16"]

Every round starts one Gunicorn worker per app and class, keeps it busy over 16 connections from a process of its own, and
divides the CPU that the worker used by the requests that it answered. Both apps tokenise in it, with the same client. The
class asgi is Gunicorn's own, for which a2wsgi adapts the Flask apps. "1 core" keeps the worker and its threads on one core,
as GPU_SERVER_WEB_CPU_AFFINITY=auto does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import click

HERE = Path(__file__).parent
CONNECTIONS = 16
WORDS = "the quick brown fox jumps over the lazy dog while it rains in the hills"
CLASSES = {
    "sync": ["-k", "sync", "web_app:app"],
    "gthread 1": ["-k", "gthread", "--threads", "1", "web_app:app"],
    "gthread 4": ["-k", "gthread", "--threads", "4", "web_app:app"],
    "gthread 16": ["-k", "gthread", "--threads", "16", "web_app:app"],
    "gthread 16, 1 core": ["-k", "gthread", "--threads", "16", "web_app:app"],
    "gevent": ["-k", "gevent", "web_app:app"],
    "asgi": ["-k", "asgi", "--asgi-lifespan", "off", "web_asgi:app"],
}


def ask(connection: socket.socket, request: bytes) -> bool:
    """One request and its whole answer; whether the connection is still open."""
    connection.sendall(request)
    data = connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    head = head.lower()
    assert head.startswith(b"http/1.1 200"), data[:300]
    left = int(head.split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
    while left > 0:
        left -= len(connection.recv(1 << 18))
    return b"connection: close" not in head


def connect(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(path)
    return made


def drive(path: str, texts: int, seconds: float, counted: multiprocessing.Queue[int]) -> None:
    """Requests over CONNECTIONS closed loops for so long; their number goes to `counted`."""
    body = json.dumps({"inputs": WORDS if texts == 1 else [WORDS] * texts}).encode()
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    end = time.monotonic() + seconds
    done: list[int] = []

    def loop() -> None:
        connection, count = connect(path), 0
        while time.monotonic() < end:
            if not ask(connection, head.encode() + body):
                connection.close()
                connection = connect(path)
            count += 1
        done.append(count)

    threads = [threading.Thread(target=loop) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted.put(sum(done))


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(app: str, label: str, texts: int, seconds: float) -> float:
    """Microseconds of worker CPU per request to an app under a class."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-w", "1", "-b", f"unix:{path}",
             "--keep-alive", "60", "--log-level", "error", *CLASSES[label]],
            cwd=HERE, env=os.environ | {"BENCH_APP": app},
        )  # fmt: skip
        try:
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
            while not Path(path).exists() or not children.read_text().split():
                time.sleep(0.1)
            worker = int(children.read_text().split()[0])
            if label.endswith("1 core"):
                # Its threads start with the first requests, and stay where the one that starts them is.
                os.sched_setaffinity(worker, {min(os.sched_getaffinity(0))})
            load(path, texts, 1.0)
            before = cpu_s(worker)
            requests = load(path, texts, seconds)
            return (cpu_s(worker) - before) / requests * 1e6
        finally:
            server.terminate()
            server.wait(60)


def load(path: str, texts: int, seconds: float) -> int:
    """Run the load in a process of its own; the number of its requests."""
    spawn = multiprocessing.get_context("spawn")
    counted: multiprocessing.Queue[int] = spawn.Queue()
    process = spawn.Process(target=drive, args=(path, texts, seconds, counted))
    process.start()
    count = counted.get(timeout=seconds + 60)
    process.join()
    return count


@click.command()
@click.option("--seconds", default=4.0, help="of load per figure")
@click.option("--rounds", default=3, help="interleaved; the median is printed")
@click.option("--only", default="", help="the class to measure, as the table names it")
def main(seconds: float, rounds: int, only: str) -> None:
    """Print the table."""
    names = ("gunicorn", "flask", "msgspec", "orjson", "tokenizers", "gevent", "a2wsgi")
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()},",
          ", ".join(f"{name} {version(name)}" for name in names))  # fmt: skip
    print(
        f"1 worker, {CONNECTIONS} connections, {len(WORDS)} characters per text, byte tokenizer, 384 dimensions"
    )
    print(
        "\n| class | texts | plain Flask, us/request | hot route, us/request | ratio |\n|---|---|---|---|---|"
    )
    for label in [only] if only else CLASSES:
        for texts in (1, 32):
            rows = [[measure(app, label, texts, seconds) for app in ("plain", "ours")] for _ in range(rounds)]
            theirs, ours = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"| {label} | {texts} | {theirs:.0f} | {ours:.0f} | {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
