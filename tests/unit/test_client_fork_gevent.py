"""One client across a fork under gevent, where the parent's greenlets run on in the child."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from running_daemon import clean_environment

from gpu_server.testing import FakeModel, FakeServer, echo_model
from gpu_server.wire.documents import ModelInfo

PROGRAM = """
from gevent import monkey
monkey.patch_all()
import os, signal, sys, time
import gevent
from gpu_server.client import Client
from gpu_server.errors import Unavailable

client = Client(sys.argv[1], timeout_s=10)
case = sys.argv[2]


def ask(number):
    assert client.infer("echo", x=[number])["x"].tolist() == [number]


def ask_beside(model):
    try:
        client.infer(model, x=[5])
    except Unavailable:
        print("ended in", "the parent" if os.getpid() == parent else "the child", flush=True)


def child():
    signal.alarm(10)
    for _ in range(5):
        time.sleep(0.05)
    if case != "unused":
        ask(2)
    os._exit(0)


def fork():
    pid = os.fork()
    if not pid:
        child()
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        ask(3)
        time.sleep(0.005)
    ask(4)
    print("child", os.waitstatus_to_exitcode(ended[1]), flush=True)


parent = os.getpid()
ask(1)
if case == "given up":
    try:
        with gevent.Timeout(0.05):
            client.infer("slow", x=[1])
    except gevent.Timeout:
        pass
if case == "waiting":
    gevent.spawn(ask_beside, "slow")
    gevent.sleep(0.05)
if case == "answered":
    # Its answer and the moment to fork come in the same turn of the loop, the answer first.
    gevent.spawn(ask_beside, "echo")
    gevent.sleep(0)
    forking = gevent.spawn_later(0.001, fork)
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    forking.get()
elif case == "starting":
    # The fork comes before the greenlet that serves the connection has run.
    client.close()
    client = Client(sys.argv[1], timeout_s=10)
    gevent.joinall([gevent.spawn(ask_beside, "echo"), gevent.spawn(fork)], raise_error=True)
else:
    fork()
client.close()
"""
SAID = {
    "waiting": ["ended in the child", "child 0", "ended in the parent"],
    "answered": ["ended in the child", "child 0"],
}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    release = threading.Event()

    def slow(inputs: object, params: object) -> dict[str, object]:
        release.wait(20)
        return {"y": [1]}

    with FakeServer(echo_model(), FakeModel(ModelInfo(name="slow"), slow)) as running:
        yield running
        release.set()


@pytest.mark.parametrize("case", ["unused", "used", "given up", "waiting", "answered", "starting"])
def test_a_child_neither_hangs_nor_disturbs_its_parent(server: FakeServer, case: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, server.endpoint, case],
        capture_output=True, text=True, timeout=30, env=clean_environment(),
    )  # fmt: skip
    assert (ran.stdout.splitlines(), ran.stderr, ran.returncode) == (SAID.get(case, ["child 0"]), "", 0)
