"""A real daemon and engine: right answers, batches over process borders, deadlines, cancel, priorities, forks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from running_daemon import MODELS, RunningDaemon, alive, clean_environment, until

from gpu_server.aio import AsyncClient
from gpu_server.client import Client
from gpu_server.connection import Reply
from gpu_server.errors import DeadlineExceeded, InvalidRequest, ModelFailed, TooLarge

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[RunningDaemon]:
    with tempfile.TemporaryDirectory(prefix="gs-") as folder:
        sources = (f"served_models:{name}" for name in ("Numbers", "Network", "Picky"))
        # A batch sent ahead of a held one could not be withdrawn any more.
        running = RunningDaemon(f"ipc://{folder}/s", "--batches-in-flight", "1", *sources)
        try:
            yield running.wait_ready()
        finally:
            running.kill()


@pytest.fixture
def client(server: RunningDaemon) -> Client:
    return server.client


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as made:
        yield made


def waiting(client: Client, requests: int) -> None:
    until(lambda: client.status().queue.requests == requests, f"{requests} open requests", 20)


def ask(client: Client, *values: int, **options: Any) -> Reply:
    return client.infer_request("Numbers", {"x": list(values)}, **options)


def hold(pool: ThreadPoolExecutor, client: Client, gate: Path) -> Any:
    """Keep the engine busy until the gate is opened; returns the future of the request that does."""
    future = pool.submit(ask, client, 0, params={"gate": str(gate)})
    waiting(client, 1)
    return future


def test_answers_equal_the_model_itself(client: Client) -> None:
    sys.path.insert(0, str(MODELS))
    try:
        from served_models import Network
    finally:
        sys.path.remove(str(MODELS))
    model = Network()
    model.load(torch.device("cpu"))
    x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    expected = model.network(torch.from_numpy(x)).detach().numpy()
    got = client.infer("Network", x=x)["output"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    for row in (0, 150, 299):
        (alone,) = client.infer("Network", x=x[row : row + 1])["output"]
        np.testing.assert_allclose(alone, expected[row], rtol=1e-5, atol=1e-6)


def test_the_reply_says_who_answered_and_how_long_it_took(client: Client) -> None:
    header = ask(client, 1, 2, 3).header
    assert (header.model, header.version) == ("Numbers", client.model("Numbers").version)
    assert header.timing
    assert header.timing.batch_items == 3
    assert 0 < header.timing.compute_us <= header.timing.total_us


def test_a_large_request_is_answered_whole(client: Client) -> None:
    x = np.arange(1000)
    np.testing.assert_array_equal(client.infer("Numbers", x=x)["y"], 2 * x + 1)


def test_bad_requests_are_refused_with_the_reason(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="'x' must be i64"):
        client.infer("Numbers", x=np.zeros((2, 2), np.int64))
    with pytest.raises(InvalidRequest, match="no parameter 'nope'; it has: gate, note"):
        client.infer("Numbers", x=[1], params={"nope": 1})
    with pytest.raises(TooLarge, match="max_items"):
        client.infer("Numbers", x=np.zeros(10_000, np.int64))


def test_a_bad_item_fails_alone(client: Client, pool: ThreadPoolExecutor) -> None:
    reply = client.infer_request("Picky", {"x": [12, 13, 14]})
    assert reply.outputs["y"].to_numpy().tolist() == [25, 0, 29]
    assert [(e.item, e.message) for e in reply.header.item_errors] == [(1, "the model raised ValueError")]
    with pytest.raises(ModelFailed, match="item 1: "):
        client.infer("Picky", x=[12, 13])
    with pytest.raises(ModelFailed):
        client.infer("Picky", x=[13])
    futures = [pool.submit(client.infer, "Picky", x=[n]) for n in range(20)]
    for n, future in enumerate(futures):
        if n == 13:
            assert isinstance(future.exception(), ModelFailed)
        else:
            assert future.result()["y"].tolist() == [2 * n + 1]


def test_a_full_header_stays_within_the_engines_limit(client: Client) -> None:
    note = "n" * 3900
    with pytest.raises(InvalidRequest, match="4096"):
        client.infer("Numbers", x=[1], params={"note": note * 2})
    for size in range(3900, 4030):
        try:
            assert client.infer("Numbers", x=[1], params={"note": "n" * size})["y"].tolist() == [3]
        except InvalidRequest:
            return
    pytest.fail("no note was too long")


PROCESS = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from gpu_server.client import Client
salt = int(sys.argv[1])
client = Client()
client.hello()
def ask(thread):
    x = [salt * 100 + thread]
    reply = client.infer_request("Numbers", {"x": x})
    assert reply.outputs["y"].to_numpy().tolist() == [2 * x[0] + 1]
    return reply.header.timing.batch_items
with ThreadPoolExecutor(4) as pool:
    print(max(pool.map(ask, range(4))))
"""


def batches_of(client: Client, up_to: str) -> float:
    (family,) = (
        f for f in text_string_to_metric_families(client.metrics()) if f.name == "gpu_server_batch_items"
    )
    return sum(s.value for s in family.samples if s.labels == {"model": "Numbers", "le": up_to})


def test_requests_of_several_processes_ride_in_one_batch(
    server: RunningDaemon, client: Client, pool: ThreadPoolExecutor, gate: Path
) -> None:
    held = hold(pool, client, gate)
    before = batches_of(client, "+Inf") - batches_of(client, "8")
    environment = clean_environment(GPU_SERVER_ENDPOINT=server.endpoint)
    callers = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(n)], env=environment, stdout=subprocess.PIPE)
        for n in range(4)
    ]
    waiting(client, 17)
    gate.touch()
    assert [caller.communicate(timeout=20)[0] for caller in callers] == [b"16\n"] * 4
    assert [caller.returncode for caller in callers] == [0] * 4
    assert batches_of(client, "+Inf") - batches_of(client, "8") == before + 1
    assert held.result().outputs["y"].to_numpy().tolist() == [1]


def test_what_misses_its_deadline_never_runs(client: Client, pool: ThreadPoolExecutor, gate: Path) -> None:
    held = hold(pool, client, gate)
    before = client.status().counters["batches"]
    with pytest.raises(DeadlineExceeded):
        ask(client, 1, timeout_s=0.2)
    waiting(client, 1)
    gate.touch()
    assert held.result()
    assert ask(client, 5).outputs["y"].to_numpy().tolist() == [11]
    assert client.status().counters["batches"] == before + 2


def test_what_its_caller_gave_up_never_runs(client: Client, pool: ThreadPoolExecutor, gate: Path) -> None:
    held = hold(pool, client, gate)
    before = client.status().counters["batches"]

    async def give_up() -> None:
        mine = AsyncClient(client.endpoint)
        task = asyncio.create_task(mine.infer("Numbers", x=[1, 2, 3]))
        await asyncio.to_thread(waiting, client, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(waiting, client, 1)
        mine.close()

    asyncio.run(give_up())
    assert client.status().queue.items == 0
    gate.touch()
    assert held.result()
    until(lambda: client.status().counters["batches"] == before + 1, "the held batch is counted", 10)


def test_an_interactive_request_does_not_wait_for_bulk(
    client: Client, pool: ThreadPoolExecutor, gate: Path
) -> None:
    held = hold(pool, client, gate)
    order: list[int] = []

    async def send() -> None:
        async with AsyncClient(client.endpoint, timeout_s=30) as mine:

            async def ask_for(items: int, priority: int) -> None:
                answer = await mine.infer("Numbers", x=list(range(items)), priority=priority)
                order.append(len(answer["y"].tolist()))

            async with asyncio.TaskGroup() as asking:
                for _ in range(10):
                    asking.create_task(ask_for(640, 2))
                await asyncio.to_thread(waiting, client, 11)
                asking.create_task(ask_for(1, 0))
                await asyncio.to_thread(waiting, client, 12)
                gate.touch()

    asyncio.run(send())
    assert held.result()
    assert order == [1] + [640] * 10


def test_one_client_in_parent_and_forked_children(client: Client) -> None:
    def work(salt: int) -> bool:
        return all(
            ask(client, salt + n).outputs["y"].to_numpy().tolist() == [2 * (salt + n) + 1] for n in range(50)
        )

    assert work(0)
    children = []
    for number in range(3):
        pid = os.fork()
        if not pid:
            try:
                os._exit(0 if work(1000 * number) else 1)
            finally:
                os._exit(2)
        children.append(pid)
    assert work(9000)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]


def test_neither_process_maps_what_it_must_not(server: RunningDaemon) -> None:
    daemon, engine = (Path(f"/proc/{pid}/maps").read_text() for pid in (server.pid, server.engine_pid()))
    assert "libtorch" in engine
    assert "libtorch" not in daemon
    for maps in (daemon, engine):
        assert "/dev/shm/" not in maps
    assert alive(server.pid)
