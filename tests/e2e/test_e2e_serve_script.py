"""`scripts/serve`: the two commands, together, in one; they end together, however it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from running_daemon import MODELS, ROOT, alive, children, clean_environment, until

from gpu_server.client import Client

SCRIPT = ROOT / "scripts" / "serve.py"
TWO = ("A man is eating food.", "A man eats something.")


def finished(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The script run to its end, in a folder that is not the checkout's."""
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=MODELS,
        env=clean_environment(**env),
        capture_output=True,
        text=True,
        timeout=120,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def serving(**env: str) -> Iterator[subprocess.Popen[bytes]]:
    """The script with a model of the caller's folder, once it says that it serves."""
    with tempfile.TemporaryFile() as out:
        script = subprocess.Popen(
            [sys.executable, SCRIPT, "served_models:Numbers"],
            cwd=MODELS,
            env=clean_environment(**env),
            stdout=out,
            # Where the tests run under nohup, the script would keep ignoring the hang-up.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        try:
            until(lambda: script.poll() is not None or out.seek(0) or b"Serving on" in out.read(), "serving")
            yield script
        finally:
            family = [pid for child in children(script.pid) for pid in (child, *children(child))]
            script.terminate()
            script.wait(60)
            until(lambda: not any(map(alive, family)), "all have ended")


def test_check_prints_the_similarity(reference: dict[str, NDArray[np.float32]]) -> None:
    ended = finished("--check")
    assert ended.returncode == 0, ended.stderr
    printed = re.search(r"^similarity of (.+): (-?\d\.\d{4})$", ended.stdout, re.M)
    assert printed, ended.stdout
    assert printed[1] == f"{TWO[0]!r} and {TWO[1]!r}"
    assert abs(float(printed[2]) - float(reference[TWO[0]] @ reference[TWO[1]])) <= 2e-3
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_script_is_the_end_of_both(own_endpoint: str, number: signal.Signals) -> None:
    env = {"GPU_SERVER_ENDPOINT": own_endpoint, "GPU_SERVER_WEB_BIND": f"127.0.0.1:{free_port()}"}
    with serving(**env) as script:
        with Client(own_endpoint) as client:
            assert client.status().state == "ready"
        family = children(script.pid)
        assert len(family) == 2
        script.send_signal(number)
        assert script.wait(60) == (-number if number == signal.SIGKILL else 0)
        until(lambda: not any(map(alive, family)), "both have ended")


def test_a_taken_address_is_said_at_once(own_endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = finished(GPU_SERVER_ENDPOINT=own_endpoint, GPU_SERVER_WEB_BIND=bind)
    expected = (
        f"scripts/serve: cannot listen on {bind}: Address already in use; "
        "set GPU_SERVER_WEB_BIND to another host:port\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", expected)


def test_a_wrong_model_is_the_last_word(own_endpoint: str, tmp_path: Path) -> None:
    env = {"GPU_SERVER_ENDPOINT": own_endpoint, "GPU_SERVER_WEB_BIND": f"127.0.0.1:{free_port()}"}
    ended = finished("served_models:Nope", **env)
    said, last = ended.stderr.splitlines()
    assert ended.returncode == 65
    assert "has no class 'Nope'; it defines: Numbers, Network" in said
    assert last == "scripts/serve: the daemon ended with code 65"


@pytest.mark.parametrize(
    ("variable", "value"), [("GPU_SERVER_WEB_BIND", "unix:/tmp/x"), ("GPU_SERVER_ENDPOINT", "nonsense")]
)
def test_a_wrong_setting_is_one_line(variable: str, value: str) -> None:
    ended = finished(**{variable: value})
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert value in line
