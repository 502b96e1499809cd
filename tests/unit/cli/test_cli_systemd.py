"""`gpu-server systemd`: units for other places, users and devices, written once and never over someone's changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gpu_server.cli.systemd import PLACES, UNITS, command
from gpu_server.errors import ConfigError


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("gpu-server", "gunicorn"):
        (folder / name).touch(0o755)
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_every_file_has_a_place() -> None:
    assert {path.name for path in UNITS.iterdir()} == set(PLACES)


def test_the_shipped_files_are_what_is_printed_for_the_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: True)
    for name in PLACES:
        printed = run("print", name, "--bin", "/opt/gpu-server/bin").output
        assert printed.partition("\n")[2] == (UNITS / name).read_text("utf-8") + "\n"


def test_this_interpreters_commands_are_the_default() -> None:
    printed = run("print", "gpu-server@.service", "gpu-web@.service").output
    folder = Path(sys.executable).parent
    assert f"ExecStart={folder}/gpu-server start --config /etc/gpu-server/%i.toml" in printed
    assert f"ExecStart={folder}/gunicorn -c python:web.serving web:app" in printed


def test_users_group_and_listener_are_replaced_everywhere(bin_folder: Path) -> None:
    names = ("--user", "alice", "--web-user", "bob", "--group", "models", "--bind", "/run/web.sock")
    printed = run("print", "--bin", str(bin_folder), *names).output
    for line in (
        "User=alice", "SocketUser=alice", "Group=models", "SocketGroup=models", "User=bob", "Group=bob",
        "SupplementaryGroups=models", "g models -", "m alice models", "m bob models", "ListenStream=/run/web.sock",
    ):  # fmt: skip
        assert f"\n{line}\n" in printed, line
    assert "gpu-clients" not in printed


@pytest.mark.parametrize(
    ("options", "drop_ins"),
    [
        (["--no-gpu"], {"cpu.conf"}),
        (["--gpu"], {"gpu.conf"}),
        (["--gpu", "--devices"], {"gpu.conf", "gpu-devices.conf"}),
    ],
)
def test_install_writes_what_the_machine_needs(
    bin_folder: Path, tmp_path: Path, options: list[str], drop_ins: set[str]
) -> None:
    root = tmp_path / "root"
    assert run("install", "--root", str(root), "--bin", str(bin_folder), "--no-gpu").exit_code == 0
    assert run("install", "--root", str(root), "--bin", str(bin_folder), *options).exit_code == 0
    system = root / "etc/systemd/system"
    assert {path.name for path in (system / "gpu-server@.service.d").iterdir()} == drop_ins
    assert f"ExecStart={bin_folder}/gpu-server start" in (system / "gpu-server@.service").read_text()
    assert (root / "etc/sysusers.d/gpu-server.conf").exists()
    assert (root / "etc/tmpfiles.d/gpu-server.conf").exists()
    assert (root / "etc/gpu-server/main.toml").read_text().startswith("#")


def test_changed_files_are_kept_unless_forced(bin_folder: Path, tmp_path: Path) -> None:
    root, options = tmp_path / "root", ("--no-gpu", "--bin", str(bin_folder))
    unit = root / "etc/systemd/system/gpu-web@.service"
    settings = root / "etc/gpu-server/main.toml"
    run("install", "--root", str(root), *options)
    unit.write_text("mine")
    settings.write_text("mine")
    with pytest.raises(ConfigError, match="differs; --force"):
        run("install", "--root", str(root), *options)
    assert unit.read_text() == "mine"
    run("install", "--root", str(root), "--force", *options)
    assert unit.read_text() != "mine"
    assert settings.read_text() == "mine"


def test_commands_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no command gpu-server in"):
        run("print", "--bin", str(tmp_path))


@pytest.mark.parametrize("folder", ["my bin", "p%h", "b\\1n", 'a"b', "a$b"])
def test_a_folder_that_a_unit_file_would_read_otherwise_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    for name in ("gpu-server", "gunicorn"):
        (tmp_path / folder / name).touch(0o755)
    with pytest.raises(ConfigError, match=r"--bin: .* is not made of letters"):
        run("print", "--bin", str(tmp_path / folder))


@pytest.mark.parametrize("option", ["--user", "--web-user", "--group", "--bind"])
@pytest.mark.parametrize("value", ["", "a\nExecStartPre=/bin/x", "a\\1", "a b", "%h"])
def test_a_value_that_would_be_more_than_one_is_refused(bin_folder: Path, option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: .* is not made of letters"):
        run("print", "--bin", str(bin_folder), option, value)


def test_an_address_of_ipv6_is_taken(bin_folder: Path) -> None:
    printed = run("print", "gpu-web@.socket", "--bin", str(bin_folder), "--bind", "[::1]:8000").output
    assert "\nListenStream=[::1]:8000\n" in printed


def test_a_venv_in_a_home_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: True)
    printed = run("print", "gpu-web@.service", "--bin", "/home/alice/venv/bin").output
    assert "\nProtectHome=read-only\n" in printed
