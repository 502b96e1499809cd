"""`gpu-server models`: what is served."""

from __future__ import annotations

import click
import msgspec

from gpu_server.cli import options
from gpu_server.wire.documents import ModelInfo


@click.command("models")
@options.endpoint
@options.as_json
def command(endpoint: str | None, as_json: bool) -> None:
    """List the models that are served, the default first."""
    with options.client(endpoint) as client:
        models = client.models()
    if as_json:
        click.echo(msgspec.json.encode(models).decode())
        return
    for info in models:
        click.echo(f"{info.name}  {info.kind}  {describe_inputs(info)}")


def describe_inputs(info: ModelInfo) -> str:
    """The inputs of a model in one line."""
    shown = [
        f"{i.name}: {i.dtype}[{', '.join('any' if d == -1 else str(d) for d in i.shape)}]"
        for i in info.inputs
    ]
    text = ["text"] if info.text is not None else []
    return " or ".join([*text, ", ".join(shown)] if shown else text) or "any inputs"
