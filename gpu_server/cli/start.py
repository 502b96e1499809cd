"""`gpu-server start`: run the daemon in the foreground."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from gpu_server import config, logs, source
from gpu_server.cli import options
from gpu_server.daemon import systemd
from gpu_server.errors import GPUServerError
from gpu_server.wire.documents import Status

WIDTH = 24


@click.command("start")
@click.argument("models", nargs=-1, metavar="[[NAME=]MODEL]...", callback=options.refuse_empty)
@click.option(
    "--config", "path", type=click.Path(path_type=Path), help="TOML file with settings and [[models]]."
)
@options.model_settings
@options.settings
def command(models: tuple[str, ...], path: Path | None, **flags: Any) -> None:
    """Load MODEL and serve it until stopped.

    MODEL is pkg.module:Class, a folder, or a hub id; without one all-MiniLM-L6-v2 is served. NAME is what clients ask for.
    SIGTERM or Ctrl-C finishes what was accepted, then stops; a second one stops at once.
    """
    notifier = systemd.Notifier.from_environment()
    options.warn_of_variables()
    try:
        sys.exit(_serve(path, flags, models, notifier))
    except GPUServerError as error:
        notifier.send(systemd.status(str(error)))
        raise


def _serve(
    path: Path | None, flags: dict[str, Any], models: tuple[str, ...], notifier: systemd.Notifier
) -> int:
    settings = config.load(path, flags, models)
    for model in settings.models or (config.ModelConfig(),):
        source.check_packages(model.source)
    # After the check: the daemon imports packages of the server extra.
    from gpu_server.daemon.server import Daemon

    source.search_current_folder()
    logs.setup(settings.server.log_level, settings.server.log_format, "daemon")
    return Daemon(settings, Progress(), notifier, systemd.inherited_listener()).run()


class Progress:
    """Shows a load: a bar on a terminal, a line per phase elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._last = ""
        self._was_ready = False

    def __call__(self, status: Status) -> None:
        """Show one status; where it cannot be written (a full disk), nobody is served worse for it."""
        with suppress(OSError):
            self._show(status)

    def _show(self, status: Status) -> None:
        if status.state == "ready":
            self._show_ready(status)
        elif self._terminal and status.phase:
            done = int(status.progress * WIDTH)
            click.echo(f"\r\033[K[{'█' * done}{'·' * (WIDTH - done)}] {status.phase}", err=True, nl=False)
        elif status.phase and status.phase != self._last:
            self._last = status.phase
            click.echo(f"{status.progress:4.0%} {status.phase}", err=True)

    def _show_ready(self, status: Status) -> None:
        names = ", ".join(model.name for model in status.models)
        device = status.engines[0].device if status.engines else ""
        ready = "ready again" if self._was_ready else f"ready in {time.monotonic() - self._started:.1f} s"
        self._was_ready = True
        start = "\r\033[K" if self._terminal else ""
        click.echo(f"{start}{ready}: {names} on {device} at {status.endpoint}", err=True)
