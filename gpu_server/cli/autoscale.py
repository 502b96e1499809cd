"""`gpu-server autoscale`: keep a Gunicorn's workers as many as the load needs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click

from gpu_server import logs
from gpu_server.autoscale.controller import Controller, Policy
from gpu_server.autoscale.engine_load import EngineLoad
from gpu_server.autoscale.loop import Autoscaler
from gpu_server.autoscale.processes import Master
from gpu_server.cli import options
from gpu_server.cli.amounts import Range
from gpu_server.errors import ConfigError


@click.command("autoscale")
@click.option("--pid", type=click.IntRange(1), help="Gunicorn's master process.")
@click.option(
    "--pidfile", type=click.Path(dir_okay=False, path_type=Path), help="The file that gunicorn --pid wrote."
)
@click.option("--systemd", "unit", metavar="UNIT", help="The unit that runs it, such as gpu-web@main.")
@click.option("--min", "least", type=click.IntRange(1), default=1, show_default=True, help="Fewest workers.")
@click.option("--max", "most", type=click.IntRange(1), help="Most workers.  [default: one per core]")
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    help="Threads of a worker, where requests that hold them shall count as load; 0: only their CPU does.",
)
@click.option(
    "--remove-after-s",
    type=Range(5),
    default=Policy.remove_after_s,
    show_default=True,
    help="Seconds for which fewer workers must have been enough.",
)
@options.endpoint
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(
    pid: int | None,
    pidfile: Path | None,
    unit: str | None,
    least: int,
    most: int | None,
    threads: int,
    remove_after_s: float,
    endpoint: str | None,
    log_format: str,
) -> None:
    """Add Gunicorn workers while they are busy, and remove them when fewer would do; ends with Gunicorn.

    Never adds one while the engine is the bottleneck. Every move is logged with its reason.
    """
    logs.setup("info", log_format, "autoscale")
    most = max(least, most or len(os.sched_getaffinity(0)))
    policy = Policy(least, most, remove_after_s=remove_after_s)
    master = Master(_pid(pid, pidfile, unit))
    with options.client(endpoint) as client:
        Autoscaler(master, Controller(policy), EngineLoad(client), threads=threads).run()


def _pid(pid: int | None, pidfile: Path | None, unit: str | None) -> int:
    """The master that was named. Raises UsageError unless it was named once, ConfigError where it does not run."""
    if sum(given is not None for given in (pid, pidfile, unit)) != 1:
        raise click.UsageError("name Gunicorn by one of --pid, --pidfile and --systemd")
    if pid is not None:
        return pid
    text = _of_unit(unit) if unit is not None else _of_file(pidfile)
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"{unit or pidfile} names no running process")
    return int(text)


def _of_file(path: Path | None) -> str:
    assert path is not None
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _of_unit(unit: str) -> str:
    ask = ["systemctl", "show", "--property", "MainPID", "--value", "--", unit]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"systemctl cannot say which process {unit} is: {error}") from None
