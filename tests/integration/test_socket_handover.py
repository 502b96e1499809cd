"""A listening socket that outlives the daemons on it, as a socket unit's does: a restart refuses nobody."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zmq
from running_daemon import MODELS, PYTHON, clean_environment, until

from gpu_server.client import Client
from gpu_server.connection import Connection
from gpu_server.errors import ModelLoading, RemoteError
from gpu_server.wire import FAREWELL_ANSWER, RequestHeader, Tensor, encode_request

pytestmark = pytest.mark.slow
START = 'exec 3<&0 <&-; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
"""What systemd does for a service with a socket unit."""


class SocketUnit:
    """The listener, and one daemon after another on it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(endpoint.removeprefix("ipc://"))
        self._listener.listen(64)
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, model: str = "Numbers", **env: str) -> subprocess.Popen[bytes]:
        """A daemon on the socket."""
        command = [PYTHON, "-m", "gpu_server", "start", f"served_models:{model}", *options]
        self.daemons.append(
            subprocess.Popen(
                ["sh", "-c", START, "sh", *command],
                cwd=MODELS,
                env=clean_environment(**env),
                stdin=self._listener.fileno(),
                stderr=subprocess.DEVNULL,
            )
        )
        return self.daemons[-1]

    def restart(self) -> None:
        """As `systemctl restart`: the next daemon starts when the last one has ended."""
        last = self.daemons[-1]
        last.send_signal(signal.SIGTERM)
        assert last.wait(30) == 0
        self.start()

    def close(self) -> None:
        """End everything."""
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait(30)
        self._listener.close()


@pytest.fixture
def unit(own_endpoint: str) -> Iterator[SocketUnit]:
    with closing(SocketUnit(own_endpoint)) as made:
        yield made


def ask(client: Client, value: int) -> list[int]:
    answer: list[int] = client.infer(x=[value])["y"].tolist()  # type: ignore[union-attr]
    return answer


def test_requests_that_come_before_the_daemon_wait_for_its_first_load(unit: SocketUnit) -> None:
    with Client(unit.endpoint, timeout_s=30) as client:
        answers: list[list[int]] = []
        threads = [threading.Thread(target=lambda n=n: answers.append(ask(client, n))) for n in range(4)]
        for thread in threads:
            thread.start()
        unit.start()
        for thread in threads:
            thread.join(30)
    assert sorted(answers) == [[1], [3], [5], [7]]


def test_it_refuses_them_where_it_is_told_to(unit: SocketUnit, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    unit.start("--while-loading", "refuse", model="Gated", LOAD_GATE=str(gate), WARM_GATE=str(gate))
    with Client(unit.endpoint, timeout_s=30) as client:
        for _ in range(3):
            with pytest.raises(ModelLoading):
                ask(client, 1)
        gate.touch()
        until(lambda: client.status().state == "ready", "the daemon")
        assert ask(client, 1) == [3]


def test_restarts_under_load_refuse_nobody(unit: SocketUnit) -> None:
    unit.start()
    stop = threading.Event()
    errors: list[RemoteError] = []
    answered = [0] * 4

    def call(client: Client, number: int) -> None:
        while not stop.is_set():
            try:
                assert ask(client, number) == [2 * number + 1]
                answered[number] += 1
            except RemoteError as error:
                errors.append(error)

    def more() -> None:
        goal = [count + 20 for count in answered]
        until(lambda: all(map(lambda have, want: have >= want, answered, goal)), "more answers")

    with Client(unit.endpoint, timeout_s=30) as one, Client(unit.endpoint, timeout_s=30) as other:
        threads = [threading.Thread(target=call, args=((one, other)[n % 2], n)) for n in range(4)]
        for thread in threads:
            thread.start()
        more()
        for _ in range(3):
            unit.restart()
            more()
        stop.set()
        for thread in threads:
            thread.join(30)
    assert errors == []


def test_no_request_is_lost_on_a_connection_that_the_old_daemon_never_read(unit: SocketUnit) -> None:
    """Many are used for the first time as it closes: some of them after it has looked for the last time."""
    unit.start()
    ready = Client(unit.endpoint, timeout_s=30)
    fresh = [Connection(unit.endpoint) for _ in range(60)]
    with zmq.Context() as context, context.socket(zmq.DEALER) as last, ready:
        ask(ready, 1)
        until(lambda: all(connection._up for connection in fresh), "the connections")
        last.linger = 0
        last.connect(unit.endpoint)
        last.send_multipart([b"", *encode_request(RequestHeader(v=1, id=b"1", op="hello"))])
        last.recv_multipart()
        stopping = threading.Thread(target=unit.restart)
        stopping.start()
        assert last.recv_multipart(), "a farewell whose answer the daemon waits for"
        last.send_multipart(FAREWELL_ANSWER)
        inputs = {"x": Tensor.from_numpy(np.array([4]))}
        futures = [
            connection.submit(RequestHeader(v=1, id=b"-", op="infer"), inputs, 30) for connection in fresh
        ]
        stopping.join(30)
        answers = [future.result(30).outputs["y"].to_numpy().tolist() for future in futures]
    assert answers == [[9]] * len(fresh)
    for connection in fresh:
        connection.close()
