"""Starts `gpu-server autoscale` beside Gunicorn's master, for `web.serving`."""

from __future__ import annotations

import subprocess
import sys

from gpu_server.errors import ConfigError
from web.settings import Settings, variable_of


def check(settings: Settings) -> None:
    """Raise ConfigError on bounds that leave no number of workers."""
    if 0 < settings.autoscale_max < settings.autoscale_min:
        raise ConfigError(
            f"{variable_of('autoscale_min')} is {settings.autoscale_min}, "
            f"above {variable_of('autoscale_max')}, {settings.autoscale_max}"
        )


def command(master: int, settings: Settings) -> list[str]:
    """What is run for a master's pid."""
    bounds = ["--min", str(settings.autoscale_min), "--max", str(settings.autoscale_max)]
    form = "json" if settings.log_format == "json" else "text"
    return [
        *(sys.executable, "-m", "gpu_server", "autoscale", "--pid", str(master)),
        *(*bounds, "--threads", str(settings.threads), "--log-format", form),
    ]


def start(master: int, settings: Settings) -> None:
    """A process of its own, because fork() copies no thread of the master; ends when the master does."""
    subprocess.Popen(command(master, settings), stdin=subprocess.DEVNULL)
