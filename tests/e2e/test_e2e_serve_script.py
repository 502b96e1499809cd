"""`scripts/serve`: the two commands, together, in one; they end together, however it ends."""

from __future__ import annotations

import json
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from free_port import free_port
from numpy.typing import NDArray
from running_daemon import COMMAND, MODELS, ROOT, alive, children, clean_environment, until

from gpu_server.client import Client
from gpu_server.errors import ConfigError, EndpointError
from gpu_server.wire.documents import InputInfo, ModelInfo

SCRIPT = ROOT / "scripts" / "serve.py"
TWO = ("A man is eating food.", "A man eats something.")


REFUSING = """
class Refusing:
    inputs = {"x": ("i64", ())}

    def load(self, device):
        pass

    def forward(self, batch):
        raise ValueError("not today")
"""


def finished(*arguments: str, folder: Path = MODELS, **env: str) -> subprocess.CompletedProcess[str]:
    """The script run to its end, in a folder that is not the checkout's."""
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=folder,
        env=clean_environment(**env),
        capture_output=True,
        text=True,
        timeout=120,
    )


def _ignore_none() -> None:
    """Where the tests run under nohup or in a shell's background, the script would keep ignoring what they ignore."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def serving(**env: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """The script with a model of the caller's folder, once it says that it serves, and what it has said."""
    with tempfile.TemporaryFile() as out:
        script = subprocess.Popen(
            [sys.executable, SCRIPT, "served_models:Numbers"],
            cwd=MODELS,
            env=clean_environment(**env),
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=_ignore_none,
        )
        try:
            until(lambda: script.poll() is not None or out.seek(0) or b"Serving on" in out.read(), "serving")
            yield script, out
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


@pytest.mark.parametrize(
    ("name", "value"),
    [("GPU_SERVER_WEB_API_KEYS", f"someone:sha256:{'0' * 64}"), ("GPU_SERVER_WEB_API_KEYS_FILE", "{}/keys")],
)
def test_check_of_a_model_of_ones_own_behind_keys(tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "keys").write_text("someone:secret\n")
    ended = finished("--check", "served_models:Numbers", **{name: value.format(tmp_path)})
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"/v1/models/Numbers/infer answered \{.+\}$", ended.stdout, re.M), ended.stdout


def test_check_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "refusing.py").write_text(REFUSING)
    ended = finished("--check", "refusing:Refusing", folder=tmp_path)
    assert ended.returncode == 1
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("scripts/serve: ")]
    assert "/infer answered 424: " in line
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_script_is_the_end_of_both(own_endpoint: str, number: signal.Signals) -> None:
    env = {"GPU_SERVER_ENDPOINT": own_endpoint, "GPU_SERVER_WEB_BIND": f"127.0.0.1:{free_port()}"}
    with serving(**env) as (script, _):
        with Client(own_endpoint) as client:
            assert client.status().state == "ready"
        family = children(script.pid)
        assert len(family) == 2
        script.send_signal(number)
        assert script.wait(60) == (-number if number == signal.SIGKILL else 0)
        until(lambda: not any(map(alive, family)), "both have ended")


def test_a_stop_of_the_daemon_is_a_calm_end(own_endpoint: str) -> None:
    env = {"GPU_SERVER_ENDPOINT": own_endpoint, "GPU_SERVER_WEB_BIND": f"127.0.0.1:{free_port()}"}
    with serving(**env) as (script, out):
        subprocess.run([COMMAND, "stop"], env=clean_environment(**env), check=True, timeout=60)
        assert script.wait(60) == 0
        out.seek(0)
        said = out.read().decode()
    assert [line for line in said.splitlines() if line.startswith("scripts/serve: ")] == [
        "scripts/serve: the daemon was stopped, so both end"
    ]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("model", "path", "body"),
    [
        (ModelInfo(name="m", kind="embedding"), "/embed", {"inputs": "Hello"}),
        (ModelInfo(name="m", kind="sparse"), "/embed_sparse", {"inputs": "Hello"}),
        (ModelInfo(name="m", kind="reranker"), "/rerank", {"query": "What do men eat?", "texts": [*TWO]}),
        (ModelInfo(name="m", kind="classifier"), "/predict", {"inputs": "I like it."}),
        (
            ModelInfo(name="m", kind="token_classifier"),
            "/token_classification",
            {"inputs": "Ada Lovelace lived in London."},
        ),
        (
            ModelInfo(
                name="team/m",
                inputs=(InputInfo("x", "f32", (2, 1, 3)), InputInfo("n", "i64"), InputInfo("s", "utf8")),
            ),
            "/v1/models/team/m/infer",
            {"inputs": {"x": [[[[0, 0, 0]], [[0, 0, 0]]]], "n": [0], "s": ["Hello"]}},
        ),
    ],
)
def test_the_example_is_of_the_models_kind(model: ModelInfo, path: str, body: object) -> None:
    """The command as a shell would run it, with a curl that prints what it is given."""
    command = runpy.run_path(str(SCRIPT))["example"]("http://h:1", model)
    curl = """curl() { printf '%s\n' "$@"; if [ "$6" = @- ]; then cat; fi; }"""
    printed = subprocess.run(["bash", "-c", f"{curl}; {command}"], capture_output=True, text=True, timeout=30)
    *options, sent = printed.stdout.replace("@-\n", "").splitlines()
    assert options == ["-s", f"http://h:1{path}", "-H", "content-type: application/json", "-d"]
    assert json.loads(sent) == body


def test_a_model_whose_inputs_nobody_can_guess_is_asked_for() -> None:
    example = runpy.run_path(str(SCRIPT))["example"]
    for inputs in ((), (InputInfo("image", "bytes"),)):
        assert (
            example("http://h:1", ModelInfo(name="m n", inputs=inputs))
            == "curl -s http://h:1/v2/models/m%20n"
        )


def test_a_taken_address_is_said_at_once(own_endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = finished(GPU_SERVER_ENDPOINT=own_endpoint, GPU_SERVER_WEB_BIND=bind)
    expected = (
        f"scripts/serve: cannot listen on {bind}: Address already in use; "
        "set GPU_SERVER_WEB_BIND to another address\n"
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
    ("variable", "value", "error"),
    [
        ("GPU_SERVER_ENDPOINT", "nonsense", EndpointError),
        ("GPU_SERVER_WEB_BIND", "8000", ConfigError),
        ("GPU_SERVER_WEB_THREADS", "many", ConfigError),
        ("GPU_SERVER_WEB_API_KEYS_FILE", "/no/such/file", ConfigError),
    ],
)
def test_a_wrong_setting_is_one_line_and_the_code_of_the_command_it_is_for(
    variable: str, value: str, error: type[ConfigError]
) -> None:
    """Before a model is looked for: of the one that is named, nothing is said."""
    ended = finished("no.such:Model", **{variable: value})
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == error.exit_code
    assert value in line


def test_a_misspelt_option_is_not_a_model() -> None:
    ended = finished("--chek", "served_models:Numbers")
    assert ended.returncode == 2
    assert ended.stderr.endswith("No such option '--chek'. Did you mean '--check'?\n")


def test_models_and_options_in_any_order(own_endpoint: str) -> None:
    ended = finished("no.such:A", "--check", "no.such:B", GPU_SERVER_ENDPOINT=own_endpoint)
    assert ended.stderr.startswith("gpu-server: module 'no' was not found")


def test_a_unix_socket_of_somebody_else_stays(own_endpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    bind = {"GPU_SERVER_ENDPOINT": own_endpoint, "GPU_SERVER_WEB_BIND": f"unix:{path}"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert "Address already in use" in finished("no.such:Model", **bind).stderr
        assert path.is_socket()
    path.unlink()
    path.write_text("no socket")
    assert "Address already in use" in finished("no.such:Model", **bind).stderr
    assert path.read_text() == "no socket"


def test_a_unix_socket_in_the_place_of_ours_stays(tmp_path: Path) -> None:
    """Gunicorn removes its own as soon as it stops; the next may be there before the rest has ended."""
    path = tmp_path / "web.sock"
    script = runpy.run_path(str(SCRIPT))
    with ExitStack() as first:
        script["_listen_at"](first, str(path))
        path.unlink()
        with ExitStack() as second:
            script["_listen_at"](second, str(path))
            first.close()
            assert path.is_socket()
        assert not path.exists()


def test_a_unix_socket_and_a_listener_of_the_metrics(own_endpoint: str, tmp_path: Path) -> None:
    path, metrics = tmp_path / "web.sock", f"127.0.0.1:{free_port()}"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    env = {
        "GPU_SERVER_ENDPOINT": own_endpoint,
        "GPU_SERVER_WEB_BIND": f"unix:{path}",
        "GPU_SERVER_WEB_METRICS_BIND": metrics,
    }
    with serving(**env) as (_, out):
        until(lambda: out.seek(0) or b"curl" in out.read(), "the command to try")
        out.seek(0)
        said = out.read().decode()
        where = f"unix:{path} and http://{metrics}"
        assert f"\nServing on {where}; Ctrl-C stops. Try, in another terminal:\n" in said
        assert f" | curl -s --unix-socket {path} http://localhost/v1/models/Numbers/infer " in said
        assert path.stat().st_mode & 0o777 == 0o777
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as reply:
            assert reply.status == 200
        taken = finished(**env)
        assert (taken.returncode, path.exists()) == (1, True)
        assert f"cannot listen on unix:{path}: Address already in use; " in taken.stderr
    assert not path.exists()
