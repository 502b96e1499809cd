"""The first calls of a fresh process may come at once: what is made on first use is made once, and stops nobody."""

from __future__ import annotations

import subprocess
import sys

import pytest
from running_daemon import ROOT, RunningDaemon, clean_environment

DECODE_AT_ONCE = """
import sys, threading
import msgspec
from gpu_server.wire import Limits
from gpu_server.wire.documents import Hello, InputInfo, ModelInfo, from_json, to_json
from web import schemas

models = (ModelInfo(name="m", inputs=(InputInfo("x", "f32"),)),)
hello = to_json(Hello(version="1", state="ready", limits=Limits(), default_deadline_ms=1, models=models))
calls = [
    lambda: from_json(Hello, hello),
    lambda: msgspec.json.decode(b'{"inputs": {"x": [1]}}', type=schemas.InferRequest),
    lambda: msgspec.json.decode(b'{"inputs": "a"}', type=schemas.EmbedRequest),
]
sys.setswitchinterval(1e-6)
for call in calls:
    start = threading.Barrier(16)
    threads = [threading.Thread(target=lambda: (start.wait(), call())) for _ in range(16)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print("whole")
"""

CALL_AT_ONCE = """
import os, sys
from gpu_server.client import Client
client = Client(timeout_s=10)
if sys.argv[1] == "call before the fork":
    client.models()
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
from gevent import monkey, spawn
monkey.patch_all()
callers = [spawn(client.models) for _ in range(8)]
print([caller.get()[0].name for caller in callers], flush=True)
os._exit(0)
"""


def run(code: str, *arguments: str, **env: str) -> str:
    """What a Python process prints; it must end well within the time."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean_environment(**env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize("process", range(4))
def test_threads_decode_a_type_for_the_first_time(process: int) -> None:
    """msgspec ends the process when two threads look into one type at once; it must have been looked into at import."""
    assert run(DECODE_AT_ONCE) == "whole"


@pytest.mark.parametrize("before", ["nothing before the fork", "call before the fork"])
def test_greenlets_connect_for_the_first_time(linear: RunningDaemon, before: str) -> None:
    """A client imported by a preloading master meets gevent's patching only in the worker."""
    printed = run(CALL_AT_ONCE, before, GPU_SERVER_ENDPOINT=linear.endpoint)
    assert printed == str(["Linear"] * 8)
