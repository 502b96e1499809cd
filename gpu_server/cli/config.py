"""`gpu-server config`: the settings in force, or their reference."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click

from gpu_server import config
from gpu_server.cli import options


@click.command("config")
@click.option("--config", "path", type=click.Path(path_type=Path), help="TOML file to read.")
@click.option(
    "--reference", is_flag=True, help="Print every setting with its flag, variable, default and meaning."
)
def command(path: Path | None, reference: bool) -> None:
    """Check a configuration and print it as it would be used."""
    if reference:
        click.echo(config.reference(), nl=False)
        return
    options.warn_of_variables()
    settings = config.load(path)
    for name in config.SECTIONS:
        click.echo(f"[{name}]")
        section = getattr(settings, name)
        for about in fields(section):
            click.echo(f"{about.name} = {_toml(getattr(section, about.name))}")
        click.echo()
    for model in settings.models:
        click.echo("[[models]]")
        for about in fields(model):
            click.echo(f"{about.name} = {_toml(getattr(model, about.name))}")
        click.echo()


def _toml(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)
