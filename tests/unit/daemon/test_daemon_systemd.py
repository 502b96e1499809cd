"""sd_notify messages to a real datagram socket, and the listener that a socket unit passes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_server.daemon import systemd
from gpu_server.daemon.systemd import Listener, Notifier, inherited_listener
from gpu_server.errors import ConfigError


@pytest.fixture
def manager(socket_folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        made.bind(f"{socket_folder}/notify")
        yield made


def test_lines_of_one_call_are_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    assert notifier.send("READY=1", systemd.status("two\nlines"), systemd.extend_timeout(1.5))
    assert manager.recv(1000) == b"READY=1\nSTATUS=two lines\nEXTEND_TIMEOUT_USEC=1500000"


def test_an_abstract_address(socket_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        made.bind(f"\0{socket_folder}")
        Notifier(f"@{socket_folder}").send("WATCHDOG=1")
        assert made.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "@", "vsock:2:1234"])
def test_without_a_manager_nothing_is_sent_and_all_is_well(address: str) -> None:
    notifier = Notifier(address)
    assert not notifier.enabled
    assert notifier.send("READY=1")


def test_a_manager_that_is_gone_or_busy_is_reported_not_waited_for(
    manager: socket.socket, socket_folder: Path
) -> None:
    assert not Notifier(f"{socket_folder}/nobody").send("READY=1")
    notifier = Notifier(manager.getsockname())
    while notifier.send("STATUS=" + "x" * 1000):
        pass
    assert not notifier.send("READY=1")


def test_the_environment_is_read_once_and_kept_from_children() -> None:
    env = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    assert Notifier.from_environment(env).watchdog_s == 30.0
    assert env == {"HOME": "/"}


@pytest.mark.parametrize("env", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}])
def test_a_watchdog_that_is_not_ours(env: dict[str, str]) -> None:
    assert Notifier.from_environment(dict(env)).watchdog_s == 0.0


def test_a_reload_says_when_it_began() -> None:
    began, when = systemd.reloading()
    name, _, usec = when.partition("=")
    assert (began, name) == ("RELOADING=1", "MONOTONIC_USEC")
    assert int(usec) > 0


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch, socket_folder: Path) -> Iterator[socket.socket]:
    """A socket where systemd would have put its first one."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{socket_folder}/s")
        monkeypatch.setattr(systemd, "FIRST_FD", made.fileno())
        yield made


def listens(count: int = 1) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": "x"}


def test_a_listening_socket_is_taken_over(passed: socket.socket) -> None:
    passed.listen()
    os.set_inheritable(passed.fileno(), True)
    env = listens()
    assert inherited_listener(env) == Listener(passed.fileno(), f"ipc://{passed.getsockname()}")
    assert env == {}
    assert not os.get_inheritable(passed.fileno())
    assert passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


@pytest.mark.parametrize(
    "env", [{}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}]
)
def test_sockets_for_another_process_are_left_alone(env: dict[str, str]) -> None:
    assert inherited_listener(dict(env)) is None


def test_what_is_no_listening_unix_socket_is_refused(
    passed: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="ListenStream"):
        inherited_listener(listens())
    with pytest.raises(ConfigError, match="passes 2 sockets"):
        inherited_listener(listens(2))
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        monkeypatch.setattr(systemd, "FIRST_FD", tcp.fileno())
        with pytest.raises(ConfigError, match="Unix socket"):
            inherited_listener(listens())
    with open(os.devnull) as file:
        monkeypatch.setattr(systemd, "FIRST_FD", file.fileno())
        with pytest.raises(ConfigError, match="is not a socket"):
            inherited_listener(listens())
