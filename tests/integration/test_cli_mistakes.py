"""Every wrong turn at the command line: one line on stderr, its own exit code, and at once."""

from __future__ import annotations

import os
import resource
import site
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_daemon import COMMAND, MODELS, ROOT, clean_environment

from gpu_server.daemon.instance import Instance
from gpu_server.source import INSTALL_SERVER
from gpu_server.testing import FakeServer

pytestmark = pytest.mark.slow

NOBODY = 65534
LONG = "ipc:///tmp/" + "x" * 100


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*arguments: str, **env: str) -> tuple[int, str]:
    """Exit code and stderr of the installed command; checks what holds for every mistake."""
    before = children_cpu_s()
    done = subprocess.run(
        [COMMAND, *arguments],
        cwd=MODELS, env=clean_environment(PYTHONPATH="", **env), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    # CPU time, not the clock: other programs on the machine must not fail this.
    assert children_cpu_s() - before < 2
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["status"], 69, "no gpu-server daemon at ipc://"),
        (["models"], 69, "start it with: gpu-server start"),
        (["embed", "a"], 69, "no gpu-server daemon at ipc://"),
        (["stop"], 69, "no gpu-server daemon at ipc://"),
        (["reload"], 69, "/s; start it with: gpu-server start"),
        (["load", "served_models:Numbers"], 69, "/s; start it with: gpu-server start"),
        (["drain"], 69, "/s; start it with: gpu-server start"),
        (["status", "--endpoint", "tcp://127.0.0.1:9"], 69, "no gpu-server daemon answers at tcp://127.0.0.1:9"),
        (["start", "nowhere:Model"], 65, "module 'nowhere' was not found"),
        (["start", "served_models:Nope"], 65, "has no class 'Nope'; it defines: Numbers, Network"),
        (["start", "served_models.py"], 65, "did you mean served_models:Class?"),
        (["start", "served_models:Numbers", "--device", "tpu"], 78, "--device: 'tpu' is not auto"),
        (["start", "served_models:Numbers", "--dtype", "float16"], 78, "dtype is a setting of text models"),
        (["start", "a/b", "c/d", "--pooling", "cls"], 78, "--pooling is for one model, and there are 2: say it under"),
        (["start", "a:b:c"], 65, "'a:b:c' is not module:Class"),
        (["start", "/nonexistent/model"], 66, "model folder /nonexistent/model does not exist"),
        (["start", "."], 66, "has no config.json"),
        (["start", "!!"], 78, "'!!' is neither module:Class, a folder, nor a hub id"),
        (["start", "served_models:Numbers", "served_models:Numbers"], 78, "two models are named 'Numbers'"),
        (["start", "served_models:Numbers", "--endpoint", LONG], 76, "the system allows 107"),
        (["start", "served_models:Numbers", "--endpoint", "tcp://0.0.0.0:80"], 76, "set --curve-key-file and --curve-"),
        (["start", "--endpoint", "tcp://0.0.0.0:80", "--curve-key-file", "k"], 78, "belong together: set both"),
        (["status", "--endpoint", "tcp://192.0.2.1:80"], 76, "set GPU_SERVER_CURVE_CLIENT_KEY_FILE and"),
        (["keys", "/nonexistent/k"], 78, "/nonexistent/k.key: No such file or directory"),
        (["status", "--endpoint", LONG + "xxx"], 76, "choose a shorter one"),
        (["start", "--config", "nowhere.toml"], 78, "nowhere.toml: no such file"),
        (["start", "--max-items", "many"], 78, "--max-items: 'many' is not a whole number"),
    ],
)  # fmt: skip
def test_mistakes(own_endpoint: str, arguments: list[str], code: int, said: str) -> None:
    got, err = run(*arguments, GPU_SERVER_ENDPOINT=own_endpoint)
    assert got == code
    assert err.startswith("gpu-server: ")
    assert said in err


def test_a_configuration_that_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[server\n")
    code, err = run("start", "--config", str(tmp_path / "bad.toml"))
    assert code == 78
    assert err.startswith(f"gpu-server: {tmp_path}/bad.toml: ")


def test_a_second_daemon(own_endpoint: str) -> None:
    held = Instance(own_endpoint)
    code, err = run("start", "served_models:Numbers", GPU_SERVER_ENDPOINT=own_endpoint)
    held.release()
    assert (code, err) == (75, f"gpu-server: a daemon (pid {os.getpid()}) already serves {own_endpoint}\n")


def test_an_unknown_model(own_endpoint: str) -> None:
    with FakeServer(endpoint=own_endpoint):
        code, err = run("embed", "a", "--model", "nope", GPU_SERVER_ENDPOINT=own_endpoint)
    assert (code, "served: fake/embedding, echo" in err) == (68, True)


# The interpreter's own files may be closed to others, so it becomes nobody once it has loaded everything.
AS_NOBODY = f"""
import os, sys
import gpu_server.cli.status
if os.getuid() == 0:
    os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
sys.argv = ["gpu-server", "status"]
gpu_server.cli.main()
"""


@pytest.mark.parametrize("closed", ["socket", "folder"])
def test_a_socket_without_permission(own_endpoint: str, socket_folder: Path, closed: str) -> None:
    """As nobody where the tests run as root, whom permissions do not stop."""
    with FakeServer(endpoint=own_endpoint):
        (socket_folder / "s").chmod(0o000)
        socket_folder.chmod(0o755 if closed == "socket" else 0o000)
        try:
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY], env=clean_environment(GPU_SERVER_ENDPOINT=own_endpoint),
                capture_output=True, text=True, timeout=30,
            )  # fmt: skip
        finally:
            socket_folder.chmod(0o700)
    expected = (
        f"gpu-server: no permission for the socket {own_endpoint}; run as its owner or join its group\n"
    )
    assert (done.returncode, done.stderr) == (77, expected)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        code, err = run("start", "served_models:Numbers", GPU_SERVER_ENDPOINT=endpoint)
    assert (code, err) == (76, f"gpu-server: cannot bind {endpoint}: Address already in use\n")


@pytest.fixture
def site_without_torch(tmp_path: Path) -> Iterator[Path]:
    """The installed packages without torch, as links."""
    farm = tmp_path / "site"
    farm.mkdir()
    for packages in map(Path, site.getsitepackages()):
        for entry in packages.iterdir() if packages.is_dir() else ():
            if not entry.name.startswith(("torch", "functorch", "__pycache__")) and entry.suffix != ".pth":
                (farm / entry.name).symlink_to(entry)
    yield farm


def test_torch_that_is_not_installed(site_without_torch: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "gpu_server", "start", "served_models:Numbers"],
        cwd=MODELS, env=clean_environment() | {"PYTHONPATH": f"{ROOT}:{site_without_torch}"},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    expected = f"gpu-server: torch is not installed; {INSTALL_SERVER}\n"
    assert (done.returncode, done.stderr) == (71, expected)
