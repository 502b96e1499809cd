"""One daemon an endpoint: the lock, the folder's rights, and what is left behind."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_server.daemon.instance import Instance, control_endpoint, holder_pid
from gpu_server.errors import AlreadyRunning, EndpointError


@pytest.fixture
def folder(socket_folder: Path) -> Path:
    return socket_folder / "run"


@pytest.fixture
def instance(folder: Path) -> Iterator[Instance]:
    made = Instance(f"ipc://{folder}/s")
    yield made
    made.release()


def test_a_second_one_is_kept_out_and_told_by_whom(instance: Instance) -> None:
    with pytest.raises(AlreadyRunning, match=rf"pid {os.getpid()}\) already serves {instance.endpoint}"):
        Instance(instance.endpoint)
    assert holder_pid(instance.endpoint) == os.getpid()


def test_after_release_the_next_one_starts(folder: Path) -> None:
    first = Instance(f"ipc://{folder}/s")
    (folder / "s").touch()
    first.release()
    assert holder_pid(first.endpoint) is None
    assert [path.name for path in folder.iterdir()] == ["s.lock"]
    Instance(first.endpoint).release()


def test_holder_of_nothing() -> None:
    assert holder_pid("ipc:///nonexistent/s") is None


def test_tcp_endpoints_have_a_lock_too(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))
    first = Instance("tcp://127.0.0.1:5999")
    with pytest.raises(AlreadyRunning):
        Instance("tcp://127.0.0.1:5999")
    other = Instance("tcp://127.0.0.1:5998")
    assert first.control_endpoint == control_endpoint(first.endpoint) != other.control_endpoint
    assert holder_pid("tcp://127.0.0.1:5999") == os.getpid()
    first.release()
    other.release()


def test_the_folder_is_private_and_the_socket_for_its_group(instance: Instance, folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) & 0o027 == 0
    (folder / "s").touch(0o777)
    instance.secure_socket()
    assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o660


def test_the_control_socket_of_a_killed_daemon_is_swept(folder: Path) -> None:
    folder.mkdir()
    (folder / "s.ctl").touch()
    (folder / "other").touch()
    made = Instance(f"ipc://{folder}/s")
    assert sorted(path.name for path in folder.iterdir()) == ["other", "s.lock"]
    made.release()
    assert (folder / "other").exists()


def test_a_folder_that_everyone_may_write_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(EndpointError, match="can be written by everyone"):
        Instance(f"ipc://{folder}/s")


def test_a_folder_that_cannot_be_made_is_refused(folder: Path) -> None:
    folder.touch()
    with pytest.raises(EndpointError, match=f"cannot make the socket's folder {folder}/x"):
        Instance(f"ipc://{folder}/x/s")


def test_a_lock_that_cannot_be_opened_is_refused(folder: Path) -> None:
    (folder / "s.lock").mkdir(parents=True)
    with pytest.raises(EndpointError, match=r"cannot open .*s\.lock"):
        Instance(f"ipc://{folder}/s")


def test_the_path_must_leave_room_for_the_engine_socket(socket_folder: Path) -> None:
    path = str(socket_folder / "x")
    path += "x" * (106 - len(path))
    with pytest.raises(EndpointError, match="110 bytes and the system allows 107"):
        Instance(f"ipc://{path}")


def test_a_lock_that_is_a_link_is_not_followed(socket_folder: Path) -> None:
    victim = socket_folder / "victim"
    victim.write_text("precious")
    (socket_folder / "s.lock").symlink_to(victim)
    with pytest.raises(EndpointError, match="cannot open"):
        Instance(f"ipc://{socket_folder}/s")
    assert victim.read_text() == "precious"


def test_a_look_at_the_lock_does_not_stop_a_start(socket_folder: Path) -> None:
    endpoint = f"ipc://{socket_folder}/s"
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            holder_pid(endpoint)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(50):
            Instance(endpoint).release()
    finally:
        stop.set()
        looking.join()
