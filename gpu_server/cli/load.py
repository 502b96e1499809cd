"""`gpu-server load`: serve one more model, or another in the place of one."""

from __future__ import annotations

from typing import Any

import click

from gpu_server import source
from gpu_server.cli import options, owner
from gpu_server.config import split_name


@click.command("load")
@click.argument("model", metavar="[NAME=]MODEL", callback=options.refuse_empty)
@options.endpoint
@owner.drain_first
@owner.timeout_s
@options.all_model_settings
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
        named = str(source.folder_of(named).resolve())
    given = {key: value for key, value in settings.items() if value is not None}
    params: dict[str, Any] = {"source": named, "drain_first": drain_first, **given}
    owner.change(endpoint, "load", model=name, params=params, timeout_s=timeout_s)
