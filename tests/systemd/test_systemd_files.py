"""The unit files by systemd's own checks, and against the code: exit codes, time-outs, the frontend's settings."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from running_daemon import ROOT

from gpu_server.config import ServerConfig
from gpu_server.daemon.heartbeat import STOP_EXTENSION_S
from gpu_server.endpoint import SYSTEM_SOCKET
from gpu_server.errors import ConfigError, DeviceLost

FOLDER = ROOT / "scripts" / "systemd"
UNITS = ("gpu-server@.service", "gpu-server@.socket", "gpu-web@.service", "gpu-web@.socket")
analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def directives(name: str, section: str = "Service") -> dict[str, list[str]]:
    """Each directive of a section with all its values: systemd lets one be repeated."""
    values: dict[str, list[str]] = {}
    text = (FOLDER / name).read_text("utf-8").split(f"[{section}]\n", 1)[1].split("\n[", 1)[0]
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def exit_codes(kind: type[ConfigError]) -> set[int]:
    return {kind.exit_code}.union(*(exit_codes(child) for child in kind.__subclasses__()))


@analyze
def test_verify_finds_nothing(tmp_path: Path) -> None:
    for name in UNITS:
        text = (FOLDER / name).read_text("utf-8")
        (tmp_path / name).write_text(re.sub(r"/opt/gpu-server/bin/\w[\w-]*", "/bin/true", text))
    drop_in = tmp_path / "gpu-server@.service.d"
    drop_in.mkdir()
    for name in ("gpu.conf", "gpu-devices.conf", "cpu.conf"):
        shutil.copy(FOLDER / name, drop_in)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in UNITS)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    # It exits with 0 on unknown keys; what it says is what counts.
    assert (done.returncode, done.stderr) == (0, "")


@analyze
@pytest.mark.parametrize(("name", "limit"), [("gpu-server@.service", 20), ("gpu-web@.service", 15)])
def test_exposure_is_low(name: str, limit: int) -> None:
    """The threshold is ten times the exposure level."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={limit}", "--no-pager", str(FOLDER / name)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_every_exit_code_of_a_wrong_setting_or_a_lost_device_prevents_a_restart() -> None:
    wrong_usage = 2
    (codes,) = directives("gpu-server@.service")["RestartPreventExitStatus"]
    assert {int(code) for code in codes.split()} == exit_codes(ConfigError) | {
        wrong_usage,
        DeviceLost.exit_code,
    }


def test_a_stop_has_time_for_the_drain() -> None:
    (limit,) = directives("gpu-server@.service")["TimeoutStopSec"]
    assert int(limit) >= ServerConfig().drain_timeout_s + STOP_EXTENSION_S


def test_the_instance_main_is_where_clients_look_by_default() -> None:
    link = next(line for line in (FOLDER / "tmpfiles.conf").read_text().splitlines() if line.startswith("L+"))
    path, target = link.split()[1], link.split()[-1]
    assert Path(path) == SYSTEM_SOCKET
    (listens,) = directives("gpu-server@.socket", "Socket")["ListenStream"]
    assert listens.replace("%t", "/run").replace("%i", "main") == str(SYSTEM_SOCKET.parent / target)
    endpoint = directives("gpu-web@.service")["Environment"][0]
    assert endpoint == f"GPU_SERVER_ENDPOINT=ipc://{listens}"


def test_the_web_unit_may_open_no_device_and_no_writable_code() -> None:
    web = directives("gpu-web@.service")
    assert (web["PrivateDevices"], web["MemoryDenyWriteExecute"]) == (["yes"], ["yes"])
    assert "PrivateDevices" not in directives("gpu-server@.service")
