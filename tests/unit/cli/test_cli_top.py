"""`top` and `status` as people see them, without a terminal and in one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from running_daemon import clean_environment, until

from gpu_server.cli.amounts import memory, number
from gpu_server.cli.screen import ASCII, bars, draw
from gpu_server.cli.status import describe
from gpu_server.testing import FakeServer
from gpu_server.wire.documents import EngineStatus, QueueStatus, Status
from gpu_server.wire.monitoring import EngineMemory, GPUStatus, ModelMemory, Point, WebStatus

GIB = 1 << 30
STATUS = Status(
    version="1",
    pid=1,
    endpoint="ipc:///s",
    state="ready",
    uptime_s=61.0,
    queue=QueueStatus(),
    engines=(
        EngineStatus(
            pid=2,
            device="cuda:0 (NVIDIA H200)",
            state="ready",
            memory=EngineMemory(
                allocated=GIB,
                reserved=2 * GIB,
                peak=3 * GIB,
                limit=8 * GIB,
                free=100 * GIB,
                total=140 * GIB,
                models=(ModelMemory(name="m", weights=GIB // 2, warm_up=0, activations=GIB),),
            ),
        ),
    ),
    gpus=(
        GPUStatus(uuid="GPU-1", name="NVIDIA H200", memory_total=140 * GIB, memory_used=40 * GIB, utilization=0.5,
                  power_w=300.4, temperature_c=45),
    ),
    web=WebStatus(workers=4, in_flight=3),
)  # fmt: skip
POINTS = [Point(number=n, at=float(n), requests=float(n), p99_ms=1.5, busy=0.25) for n in range(1, 200)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.14159, "3.14"), (250.6, "251"), (12_345, "12.3k"), (2e7, "20M"), (9999, "9999")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_memory_is_in_mib_or_gib() -> None:
    assert (memory(5 << 20), memory(3 * GIB // 2)) == ("5 MiB", "1.5 GiB")


def test_bars_fill_with_the_value_and_show_the_smallest() -> None:
    assert bars([0, 1, 50, 100, 200], 100) == " ▁▄██"
    assert bars([0, 0], 0) == "  "
    assert bars([0, 1, 100], 100, ASCII) == " .@"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 24), (200, 50), (20, 5), (1, 1)])
def test_a_screen_fits_the_terminal(width: int, height: int) -> None:
    lines = draw(STATUS, POINTS, width=width, height=height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


def test_a_screen_shows_the_latest_and_its_past() -> None:
    lines = {line[:16].strip(): line for line in draw(STATUS, POINTS, width=80, height=40)}
    assert lines["requests/s"].split()[1] == "199"
    assert lines["requests/s"].endswith("█")
    assert lines["forward runs"].split()[2] == "25%"
    assert {"GPU busy", "GPU memory", "GPU watts"} <= set(lines)
    assert draw(STATUS, POINTS, width=80, height=1)[0].startswith("gpu-server: ready  up 61 s  cuda:0")


def test_a_screen_without_a_daemon_says_why() -> None:
    lines = draw(None, [], width=80, height=40, note="no daemon answers")
    assert lines[0] == "gpu-server: no daemon answers"
    assert "\033" not in "".join(lines)
    assert "\033[36m" in "".join(draw(STATUS, POINTS, width=80, height=40, colour=True))


def test_status_says_who_holds_how_much() -> None:
    text = describe(STATUS)
    assert (
        "memory   2.0 GiB held of 8.0 GiB, 1.0 GiB in use, 3.0 GiB at most; 100.0 GiB of the device free"
        in text
    )
    assert "m: weights 512 MiB, warm-up 0 MiB, activations 1.0 GiB" in text
    assert "gpu      NVIDIA H200: 50% busy, 40.0 GiB of 140.0 GiB in use, 300 W, 45 °C" in text
    assert "web      4 workers, 3 requests in flight" in text


@pytest.fixture
def server(own_endpoint: str) -> Iterator[FakeServer]:
    with FakeServer(endpoint=own_endpoint) as running:
        yield running


def top(endpoint: str, *options: str, **env: str) -> list[str]:
    return [sys.executable, "-m", "gpu_server", "top", "--endpoint", endpoint, *options]


def test_once_prints_a_screen_and_ends(server: FakeServer) -> None:
    done = subprocess.run(
        top(server.endpoint, "--once"), capture_output=True, text=True, timeout=30, env=clean_environment()
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("gpu-server: ready")
    assert "\033" not in done.stdout
    assert done.stdout.count("\n") == 13


def test_once_without_a_daemon_is_one_line_and_its_code(own_endpoint: str) -> None:
    done = subprocess.run(
        top(own_endpoint, "--once"), capture_output=True, text=True, timeout=30, env=clean_environment()
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)


@pytest.mark.parametrize(("term", "colour"), [("xterm", True), ("dumb", False)])
def test_in_a_terminal_it_draws_until_q_and_puts_all_back(
    server: FakeServer, term: str, colour: bool
) -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.extend(data)
        except OSError:
            pass  # the other end was closed

    reader = threading.Thread(target=read)
    process = subprocess.Popen(
        top(server.endpoint, "--every", "0.1"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(TERM=term, LANG="C.UTF-8", PYTHONUTF8="1"),
    )
    os.close(theirs)
    reader.start()
    try:
        until(lambda: shown.count(b"requests/s") >= 2, "a screen drawn twice", wait_s=30)
        os.write(ours, b"q")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        reader.join(30)
        os.close(ours)
    text = shown.decode()
    assert text.startswith("\033[?1049h\033[?25l")
    assert text.rstrip().endswith("\033[?25h\033[?1049l")
    assert (b"\033[36m" in shown) is colour
