"""Worker CPU per request: the hot route against the same route in plain Flask, over an engine that answers at once.

    .venv/bin/python scripts/bench/web.py [--seconds 4] [--rounds 3]

Every round starts one Gunicorn worker per app and class, keeps it busy over 16 connections from a process of its own, and
divides the CPU that the worker used by the requests that it answered. Both apps tokenise in it, with the same client.
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
    "sync": ["-k", "sync"],
    "gthread 1": ["-k", "gthread", "--threads", "1"],
    "gthread 4": ["-k", "gthread", "--threads", "4"],
    "gthread 16": ["-k", "gthread", "--threads", "16"],
    "gevent": ["-k", "gevent"],
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


def measure(app: str, options: list[str], texts: int, seconds: float) -> float:
    """Microseconds of worker CPU per request."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-w", "1", "-b", f"unix:{path}", *options,
             "--keep-alive", "60", "--log-level", "error", "web_app:app"],
            cwd=HERE, env=os.environ | {"BENCH_APP": app},
        )  # fmt: skip
        try:
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
            while not Path(path).exists() or not children.read_text().split():
                time.sleep(0.1)
            worker = int(children.read_text().split()[0])
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
def main(seconds: float, rounds: int) -> None:
    """Print the table."""
    names = ("gunicorn", "flask", "msgspec", "orjson", "tokenizers", "gevent")
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()},",
          ", ".join(f"{name} {version(name)}" for name in names))  # fmt: skip
    print(
        f"1 worker, {CONNECTIONS} connections, {len(WORDS)} characters per text, byte tokenizer, 384 dimensions"
    )
    print(
        "\n| class | texts | plain Flask, us/request | hot route, us/request | ratio |\n|---|---|---|---|---|"
    )
    for label, options in CLASSES.items():
        for texts in (1, 32):
            rows = [
                [measure(app, options, texts, seconds) for app in ("plain", "ours")] for _ in range(rounds)
            ]
            theirs, ours = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"| {label} | {texts} | {theirs:.0f} | {ours:.0f} | {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
