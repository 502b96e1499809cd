"""Where the socket is by default, and which endpoints are refused with what reason."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from gpu_server import endpoint as endpoints
from gpu_server.errors import EndpointError, EndpointForbidden, Unavailable


@pytest.fixture(autouse=True)
def no_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GPU_SERVER_ENDPOINT", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_daemon_takes_the_service_managers_folder_then_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoints.server_default().endswith(f"/gpu-server-{os.getuid()}/gpu-server.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert endpoints.server_default() == "ipc:///run/user/7/gpu-server/gpu-server.sock"
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one:/run/two")
    assert endpoints.server_default() == "ipc:///run/one/gpu-server.sock"


def test_a_client_looks_where_it_is_told_then_for_its_own_then_for_the_systems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    own, system = tmp_path / "gpu-server" / "gpu-server.sock", tmp_path / "system.sock"
    monkeypatch.setattr(endpoints, "SYSTEM_SOCKET", system)
    assert endpoints.client_default() == f"ipc://{own}" == endpoints.server_default()
    system.touch()
    assert endpoints.client_default() == f"ipc://{system}"
    own.parent.mkdir()
    own.touch()
    assert endpoints.client_default() == f"ipc://{own}"
    monkeypatch.setenv("GPU_SERVER_ENDPOINT", "tcp://127.0.0.1:5")
    assert endpoints.client_default() == "tcp://127.0.0.1:5"


@pytest.mark.parametrize(
    "endpoint",
    [
        "ipc:///a/b.sock",
        "tcp://127.0.0.1:5555",
        "tcp://localhost:1",
        "tcp://[::1]:65535",
        "tcp://127.9.9.9:80",
    ],
)
def test_good_endpoints(endpoint: str) -> None:
    endpoints.check(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("", "must start with ipc:// or tcp://"),
        ("/run/x.sock", "must start with ipc:// or tcp://"),
        ("http://localhost:80", "must start with ipc:// or tcp://"),
        ("inproc://x", "must start with ipc:// or tcp://"),
        ("ipc://relative.sock", "must name an absolute path"),
        ("ipc://@abstract", "must name an absolute path"),
        ("tcp://127.0.0.1", "must be tcp://host:port"),
        ("tcp://127.0.0.1:0", "must be tcp://host:port"),
        ("tcp://127.0.0.1:99999", "must be tcp://host:port"),
        ("tcp://127.0.0.1:http", "must be tcp://host:port"),
        ("tcp://:5555", "must be tcp://host:port"),
        ("tcp://*", "must be tcp://host:port"),
    ],
)
def test_bad_endpoints(endpoint: str, reason: str) -> None:
    with pytest.raises(EndpointError, match=reason):
        endpoints.check(endpoint)


def test_a_path_may_have_107_bytes() -> None:
    endpoints.check("ipc:///" + "x" * 106)
    with pytest.raises(EndpointError, match="108 bytes and the system allows 107"):
        endpoints.check("ipc:///" + "x" * 107)
    with pytest.raises(EndpointError, match="109 bytes"):
        endpoints.check("ipc:///" + "é" * 54)


def test_nothing_there_says_how_to_start_it() -> None:
    with pytest.raises(Unavailable, match="gpu-server start") as error:
        endpoints.check_reachable("ipc:///nonexistent/s")
    assert not isinstance(error.value, EndpointForbidden)
    assert error.value.details == {"endpoint": "ipc:///nonexistent/s"}


def test_a_socket_without_permission_is_another_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    path.touch()
    endpoints.check_reachable(f"ipc://{path}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EndpointForbidden, match="no permission for the socket"):
        endpoints.check_reachable(f"ipc://{path}")


def test_the_folder_in_tmp_must_not_be_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints.tempfile, "gettempdir", lambda: str(tmp_path))
    endpoint = endpoints.server_default()
    folder = tmp_path / f"gpu-server-{os.getuid()}"
    with pytest.raises(Unavailable):
        endpoints.check_reachable(endpoint)
    real = tmp_path / "real"
    real.mkdir()
    (real / "gpu-server.sock").touch()
    folder.symlink_to(real)
    with pytest.raises(EndpointForbidden, match=str(folder)):
        endpoints.check_reachable(endpoint)
    folder.unlink()
    real.rename(folder)
    endpoints.check_reachable(endpoint)
    other = os.stat_result([stat.S_IFDIR | 0o755, 1, 1, 2, 4242, 0, 0, 0, 0, 0])
    monkeypatch.setattr(Path, "lstat", lambda path: other)
    with pytest.raises(EndpointForbidden, match=str(folder)):
        endpoints.check_reachable(endpoint)
    (tmp_path / "named.sock").touch()
    endpoints.check_reachable(f"ipc://{tmp_path}/named.sock")


def test_tcp_is_tried() -> None:
    endpoints.check_reachable("tcp://127.0.0.1:1")
    assert endpoints.ipc_path("tcp://127.0.0.1:1") is None


@pytest.mark.parametrize("host", ["", "127.0.0.1", "localhost"])
def test_whether_somebody_listens(tmp_path: Path, host: str) -> None:
    listener = socket.socket(socket.AF_INET if host else socket.AF_UNIX)
    listener.bind(("127.0.0.1", 0) if host else str(tmp_path / "s"))
    name = f"tcp://{host}:{listener.getsockname()[1]}" if host else f"ipc://{tmp_path}/s"
    assert not endpoints.listens(name)
    listener.listen(0)
    assert endpoints.listens(name)
    listener.close()
    assert not endpoints.listens(name)


def test_a_full_backlog_is_somebody_who_listens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first.connect(str(tmp_path / "s"))
        assert endpoints.listens(f"ipc://{tmp_path}/s")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tcp://[::1]:1", True),
        ("tcp://127.0.0.1:1", False),
        ("tcp://localhost:1", False),
        ("ipc:///s", False),
    ],
)
def test_an_ipv6_address_is_told_from_others(name: str, expected: bool) -> None:
    assert endpoints.is_ipv6(name) is expected


def test_a_name_is_never_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    for host in ("gpu", "localhost.example"):
        endpoints.check_reachable(f"tcp://{host}:1")
        assert not endpoints.listens(f"tcp://{host}:1")
