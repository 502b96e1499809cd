"""`gpu-server systemd`: the units of scripts/systemd, written for this machine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from gpu_server.errors import ConfigError

UNITS = Path(__file__).parents[1] / "units"
SYSTEM = "etc/systemd/system"
DROP_INS = f"{SYSTEM}/gpu-server@.service.d"
PLACES = {
    "gpu-server@.service": SYSTEM,
    "gpu-server@.socket": SYSTEM,
    "gpu-web@.service": SYSTEM,
    "gpu-web@.socket": SYSTEM,
    "gpu.conf": DROP_INS,
    "gpu-devices.conf": DROP_INS,
    "cpu.conf": DROP_INS,
    "sysusers.conf": "etc/sysusers.d/gpu-server.conf",
    "tmpfiles.conf": "etc/tmpfiles.d/gpu-server.conf",
}
"""Where each file of scripts/systemd goes: a folder, or the file itself."""
HOMES = ("/home", "/root", "/run/user")
PLAIN = re.compile(r"[\w./+@:\[\]-]+")
"""What a unit file, and this module's patterns, take as it is: no blank, quote, backslash, `%` or line break."""
NEXT_STEPS = """\
next:
  systemd-sysusers && systemd-tmpfiles --create gpu-server.conf && systemctl daemon-reload
  edit /etc/gpu-server/main.toml (gpu-server config --reference)
  systemctl enable --now gpu-server@main gpu-web@main"""

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Site:
    """What differs between machines: where the commands are, who runs them, where Gunicorn listens, which devices."""

    bin: Path
    user: str
    web_user: str
    group: str
    bind: str
    gpu: bool
    devices: bool

    def files(self) -> list[str]:
        """The names of the files that this machine needs."""
        wanted = {"gpu.conf": self.gpu, "gpu-devices.conf": self.devices, "cpu.conf": not self.gpu}
        return [name for name in PLACES if wanted.get(name, True)]

    def render(self, name: str) -> str:
        """A file with this site's values in place of the defaults."""
        text = (UNITS / name).read_text("utf-8")
        for pattern, value in (
            (r"/opt/gpu-server/bin(?=/)", str(self.bin)),
            (r"\bgpu-clients\b", self.group),
            (r"(?m)^((?:Socket)?User=|[um] )gpu-server\b", rf"\g<1>{self.user}"),
            (r"(?m)^((?:User|Group)=|[um] )gpu-web\b", rf"\g<1>{self.web_user}"),
            (r"(?m)^(ListenStream=)127\.0\.0\.1:8000$", rf"\g<1>{self.bind}"),
            (r"(?m)^(ProtectHome=)yes$", rf"\g<1>{'read-only' if self._in_a_home() else 'yes'}"),
        ):
            text = re.sub(pattern, value, text)
        return text

    def _in_a_home(self) -> bool:
        return any(self.bin.is_relative_to(home) for home in HOMES)


def site_options(command: Command) -> Command:
    """The options that make a Site; the defaults are this machine and this interpreter."""
    gpu = Path("/dev/nvidiactl").exists()
    for add in (
        click.option("--bin", "bin_folder", type=click.Path(path_type=Path), default=Path(sys.executable).parent,
                     help="Folder with the commands gpu-server and gunicorn.  [default: this interpreter's]"),
        click.option("--user", default="gpu-server", show_default=True, help="The daemon's user."),
        click.option("--web-user", default="gpu-web", show_default=True, help="The web workers' user."),
        click.option("--group", default="gpu-clients", show_default=True, help="Who may open the socket."),
        click.option("--bind", default="127.0.0.1:8000", show_default=True, help="ListenStream= of gpu-web@.socket."),
        click.option("--gpu/--no-gpu", default=gpu, help="Drop-in for NVIDIA GPUs, or for none.  [default: seen here]"),
        click.option("--devices", is_flag=True, help="Add the drop-in that allows no device but NVIDIA's."),
    ):  # fmt: skip
        command = add(command)
    return command


def _site(bin_folder: Path, **values: Any) -> Site:
    for name in ("gpu-server", "gunicorn"):
        if not os.access(bin_folder / name, os.X_OK):
            raise ConfigError(f"--bin: no command {name} in {bin_folder}")
    site = Site(bin=bin_folder.absolute(), **values)
    for name, value in {"bin": str(site.bin), **values}.items():
        if isinstance(value, str) and not PLAIN.fullmatch(value):
            option = name.replace("_", "-")
            raise ConfigError(f"--{option}: {value!r} is not made of letters, digits and _./+@:[]- alone")
    return site


@click.group("systemd")
def command() -> None:
    """systemd units for the daemon and the web frontend."""


@command.command("print")
@click.argument("names", nargs=-1, metavar="[FILE]...", type=click.Choice(list(PLACES)))
@site_options
def print_units(names: tuple[str, ...], **values: Any) -> None:
    """Print FILEs, or all that this machine needs, each under the path that install gives it."""
    site = _site(**values)
    for name in names or site.files():
        click.echo(f"# /{_place(name)}\n{site.render(name)}")


@command.command("install")
@click.option("--root", type=click.Path(path_type=Path), default=Path("/"), show_default=True,
              help="Folder to install under.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files that differ.")
@site_options
def install(root: Path, force: bool, **values: Any) -> None:
    """Write the units, users and folders for systemd, and an empty /etc/gpu-server/main.toml; starts nothing.

    Raises ConfigError, before anything is written, if a file there differs and --force is not given.
    """
    site = _site(**values)
    wanted = {root / _place(name): site.render(name) for name in site.files()}
    for path, text in wanted.items():
        if not force and path.exists() and path.read_text("utf-8") != text:
            raise ConfigError(
                f"{path} is there and differs; --force replaces it, a drop-in keeps your changes"
            )
    settings = root / "etc/gpu-server/main.toml"
    if not settings.exists():
        wanted[settings] = "# Settings of gpu-server@main; empty serves the default model.\n"
    for path, text in wanted.items():
        _write(path, text)
        click.echo(path)
    for name in PLACES.keys() - set(site.files()):
        # From a time when this machine had other devices: it would hide them, or ask for what is gone.
        (root / _place(name)).unlink(missing_ok=True)
    click.echo(NEXT_STEPS)


def _place(name: str) -> str:
    place = PLACES[name]
    return place if place.endswith(".conf") else f"{place}/{name}"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        path.chmod(0o644)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
