"""`gpu-server reload`: read the models' files anew, without losing a request."""

from __future__ import annotations

import click

from gpu_server.cli import options, owner


@click.command("reload")
@options.endpoint
@owner.drain_first
@owner.timeout_s
def command(endpoint: str | None, drain_first: bool, timeout_s: float) -> None:
    """Load the served models anew in a second engine, which then takes over; if it cannot, the old one goes on.

    Exits 74 with the reason if the new engine fails.
    """
    owner.change(endpoint, "reload", params={"drain_first": drain_first}, timeout_s=timeout_s)
