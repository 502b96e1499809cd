"""`gpu-server embed`: one embedding from the command line, to see that it works."""

from __future__ import annotations

import click
import msgspec

from gpu_server.cli import options


@click.command("embed")
@click.argument("texts", nargs=-1, required=True)
@options.endpoint
@click.option("--model", default="", help="Model name; the default model if left out.")
def command(texts: tuple[str, ...], endpoint: str | None, model: str) -> None:
    """Print the embedding of each TEXT as one JSON array per line."""
    with options.client(endpoint) as client:
        for row in client.embed(texts, model=model):
            click.echo(msgspec.json.encode([round(float(x), 6) for x in row]).decode())
