"""`gpu-server unload`: stop serving a model."""

from __future__ import annotations

import click

from gpu_server.cli import options, owner


@click.command("unload")
@click.argument("model", callback=options.refuse_empty)
@options.endpoint
@owner.drain_first
@owner.timeout_s
def command(model: str, endpoint: str | None, drain_first: bool, timeout_s: float) -> None:
    """Stop serving MODEL, by its full name; requests for it that still wait are answered with model_not_found."""
    owner.change(endpoint, "unload", model=model, params={"drain_first": drain_first}, timeout_s=timeout_s)
