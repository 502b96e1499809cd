"""`gpu-server embed`: one embedding from the command line, to see that it works."""

from __future__ import annotations

import click
import msgspec

from gpu_server.cli import options
from gpu_server.client import Client
from gpu_server.errors import ModelLoading


@click.command("embed")
@click.argument("texts", nargs=-1, required=True)
@options.endpoint
@click.option(
    "--model",
    default="",
    callback=options.refuse_empty,
    help="Model name; without it the first embedding model.",
)
def command(texts: tuple[str, ...], endpoint: str | None, model: str) -> None:
    """Print the embedding of each TEXT as one JSON array per line."""
    with options.client(endpoint) as client:
        try:
            rows = client.embed(texts, model=model or _embedder(client))
        except ModelLoading:
            raise _loading(client) from None
        for row in rows:
            click.echo(msgspec.json.encode([round(float(x), 6) for x in row]).decode())


def _embedder(client: Client) -> str:
    """The first embedding model; where there is none, the error of the first model says what that is."""
    return next((info.name for info in client.models() if info.kind == "embedding" and info.text), "")


def _loading(client: Client) -> ModelLoading:
    """The error with how far the load is."""
    status = client.status()
    done = f"{status.phase}, {status.progress:.0%}" if status.phase else status.state
    return ModelLoading(f"the models are still loading ({done}); watch it with: gpu-server status")
