"""Keys in files, and who may serve or call which endpoint with or without them."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
import zmq

from gpu_server import config, curve
from gpu_server import endpoint as endpoints
from gpu_server.config import ClientConfig, ServerConfig
from gpu_server.errors import ConfigError, EndpointError

REMOTE = ("tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.168.0.1:5555", "tcp://gpu.example.com:5555")
LOCAL = ("ipc:///run/s", "tcp://127.0.0.1:5555", "tcp://localhost:5555", "tcp://127.9.9.9:5", "tcp://[::1]:5")


@pytest.fixture
def server(tmp_path: Path) -> ServerConfig:
    """Settings of a daemon with a key and one client."""
    key, _ = curve.make(tmp_path / "daemon")
    _, client = curve.make(tmp_path / "web-1")
    return ServerConfig(curve_key_file=str(key), curve_clients_file=str(client))


@pytest.fixture
def client(server: ServerConfig, tmp_path: Path) -> ClientConfig:
    """Settings of that client."""
    return ClientConfig(
        curve_client_key_file=str(tmp_path / "web-1.key"), curve_server_key_file=str(tmp_path / "daemon.pub")
    )


@pytest.mark.parametrize(("endpoints_", "local"), [(LOCAL, True), (REMOTE, False)])
def test_who_can_reach_an_endpoint(endpoints_: tuple[str, ...], local: bool) -> None:
    assert {endpoints.is_local(endpoint) for endpoint in endpoints_} == {local}


def test_a_pair_is_made_for_its_owner_and_never_over_another(tmp_path: Path) -> None:
    key, public = curve.make(tmp_path / "web-1")
    assert (key.name, public.name) == ("web-1.key", "web-1.pub")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    made = zmq.curve_public(curve.read_secret(key))
    assert curve.read_clients(public) == {made: "web-1"}
    before = key.read_text()
    with pytest.raises(ConfigError, match=r"web-1\.pub: File exists"):
        curve.make(tmp_path / "web-1")
    public.unlink()
    with pytest.raises(ConfigError, match=r"web-1\.key: File exists"):
        curve.make(tmp_path / "web-1")
    assert key.read_text() == before
    with pytest.raises(ConfigError, match="No such file or directory"):
        curve.make(tmp_path / "missing" / "web")
    with pytest.raises(ConfigError, match="names no file"):
        curve.make(Path("/"))
    with pytest.raises(ConfigError, match="File name too long"):
        curve.make(tmp_path / ("k" * 252))


@pytest.mark.parametrize("name", ["caf\udce9", "two\nlines", "bell\a"])
def test_a_name_that_cannot_stand_in_a_line_makes_no_keys(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="must be printable") as raised:
        curve.make(tmp_path / name)
    assert str(raised.value).isascii()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_secret_key_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    key, _ = curve.make(tmp_path / "web")
    key.chmod(mode)
    with pytest.raises(ConfigError, match=rf"web\.key: others .* chmod 600 {key}"):
        curve.read_secret(key)


def test_a_public_key_in_the_place_of_a_secret_one_is_told_from_it(tmp_path: Path) -> None:
    _, public = curve.make(tmp_path / "web")
    with pytest.raises(ConfigError, match=r"web\.pub: this is a public key; .* \.key") as error:
        curve.read_secret(public)
    assert "chmod" not in str(error.value)


def test_a_file_that_is_no_key_is_refused_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for text in (b"", b"hunter2", b"~" * 40, b"#" * 40, "é".encode() * 40, b"\xff" * 40):
        path.write_bytes(text)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=f"{path}: not a") as error:
            curve.read_secret(path)
        assert "hunter2" not in str(error.value)
    with pytest.raises(ConfigError, match="No such file or directory"):
        curve.read_secret(tmp_path / "none")


def test_a_list_of_clients_has_names_and_remarks(tmp_path: Path) -> None:
    first, second = (zmq.curve_keypair()[0].decode() for _ in range(2))
    path = tmp_path / "clients"
    path.write_text(f"# the web tier\n\n{first}  web 1 \n{second}\n#\n")
    assert curve.read_clients(path) == {first.encode(): "web 1", second.encode(): "line 4"}
    path.write_text("")
    assert curve.read_clients(path) == {}


def test_a_list_with_a_bad_line_or_that_others_may_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    path.write_text(f"{zmq.curve_keypair()[0].decode()} a\nweb-2\n")
    with pytest.raises(ConfigError, match=r"clients: line 2: not a key of 40 characters"):
        curve.read_clients(path)
    path.chmod(0o664)
    with pytest.raises(ConfigError, match="chmod go-w"):
        curve.read_clients(path)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_daemons_key_that_others_may_change_is_refused(client: ClientConfig, mode: int) -> None:
    path = Path(client.curve_server_key_file)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"daemon\.pub: others .* chmod go-w {path}"):
        curve.for_client(client, "tcp://gpu:5")


@pytest.mark.parametrize("endpoint", LOCAL)
def test_on_this_machine_neither_side_needs_keys(endpoint: str) -> None:
    assert curve.for_server(ServerConfig(), endpoint) is None
    assert curve.for_client(ClientConfig(), endpoint) is None


@pytest.mark.parametrize("endpoint", REMOTE)
def test_beyond_it_both_need_keys_or_the_word(
    endpoint: str, server: ServerConfig, client: ClientConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EndpointError, match="--curve-key-file and --curve-clients-file, or --insecure-tcp"):
        curve.for_server(ServerConfig(), endpoint)
    with pytest.raises(EndpointError, match=r"GPU_SERVER_CURVE_CLIENT_KEY_FILE .*GPU_SERVER_INSECURE_TCP=1"):
        curve.for_client(ClientConfig(), endpoint)
    with caplog.at_level(logging.WARNING):
        assert curve.for_client(ClientConfig(insecure_tcp=True), endpoint) is None
        assert curve.for_client(client, endpoint) is not None
        assert curve.for_server(server, endpoint) is not None
        assert caplog.records == []
        assert curve.for_server(ServerConfig(insecure_tcp=True), endpoint) is None
    assert [record.message for record in caplog.records] == [
        "serving whoever can reach the port, unencrypted"
    ]


def test_keys_fit_together(server: ServerConfig, client: ClientConfig) -> None:
    daemons = curve.for_server(server, "tcp://127.0.0.1:5")
    clients = curve.for_client(client, "tcp://127.0.0.1:5")
    assert daemons is not None
    assert clients is not None
    assert clients.server == zmq.curve_public(daemons.secret)
    assert clients.public == zmq.curve_public(clients.secret)
    assert curve.read_clients(daemons.clients) == {clients.public: "web-1"}


def test_half_of_what_is_needed_is_refused(server: ServerConfig, client: ClientConfig) -> None:
    for part in ("curve_key_file", "curve_clients_file"):
        with pytest.raises(ConfigError, match="belong together"):
            curve.for_server(ServerConfig(**{part: getattr(server, part)}), "tcp://127.0.0.1:5")
    for part in ("curve_client_key_file", "curve_server_key_file"):
        with pytest.raises(ConfigError, match="belong together"):
            curve.for_client(ClientConfig(**{part: getattr(client, part)}), "tcp://gpu:5")


def test_a_socket_file_has_no_keys(server: ServerConfig, client: ClientConfig) -> None:
    with pytest.raises(ConfigError, match="curve_key_file is for tcp"):
        curve.for_server(server, "ipc:///run/s")
    # The same client's calls to the daemon's owner go over ipc.
    assert curve.for_client(client, "ipc:///run/s") is None


def test_a_clients_settings_are_variables() -> None:
    env = {
        "GPU_SERVER_CURVE_CLIENT_KEY_FILE": "a",
        "GPU_SERVER_CURVE_SERVER_KEY_FILE": "b",
        "GPU_SERVER_INSECURE_TCP": "1",
    }
    assert config.client(env) == ClientConfig("a", "b", True)
    assert config.client({}) == ClientConfig()
    with pytest.raises(ConfigError, match="GPU_SERVER_INSECURE_TCP: 'maybe' is not true or false"):
        config.client({"GPU_SERVER_INSECURE_TCP": "maybe"})
