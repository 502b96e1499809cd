"""`gpu-server load`: serve one more model, or another in the place of one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from gpu_server import source
from gpu_server.cli import options, owner
from gpu_server.config import ModelConfig, split_name


def model_settings(command: options.Command) -> options.Command:
    """Add a flag for every setting of a model; values stay text, the daemon parses and checks them."""
    for about in reversed(fields(ModelConfig)):
        if about.name not in ("source", "name"):
            flag = f"--{about.name.replace('_', '-')}"
            command = click.option(flag, about.name, metavar="VALUE", help=about.metadata["help"])(command)
    return command


@click.command("load")
@click.argument("model", metavar="[NAME=]MODEL", callback=options.refuse_empty)
@options.endpoint
@owner.drain_first
@owner.timeout_s
@model_settings
def command(
    model: str, endpoint: str | None, drain_first: bool, timeout_s: float, **settings: str | None
) -> None:
    """Serve MODEL too: pkg.module:Class, a folder, or a hub id. A served model of that name is replaced.

    Classes are looked for where the daemon was started. A second engine loads all models, then takes over. Exits 74 with the
    reason if it cannot; the old one goes on then.
    """
    name, named = split_name(model)
    if source.kind_of(named) == "folder":
        # The daemon may run in another folder.
        named = str(Path(named).expanduser().resolve())
    given = {key: value for key, value in settings.items() if value is not None}
    params: dict[str, Any] = {"source": named, "drain_first": drain_first, **given}
    owner.change(endpoint, "load", model=name, params=params, timeout_s=timeout_s)
