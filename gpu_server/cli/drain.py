"""`gpu-server drain`: take no new requests and wait for those accepted, without ending the daemon."""

from __future__ import annotations

import time

import click

from gpu_server.cli import options, owner
from gpu_server.cli.amounts import Range
from gpu_server.errors import Unavailable

POLL_S = 0.05


@click.command("drain")
@options.endpoint
@click.option("--undo", is_flag=True, help="Take new requests again.")
@click.option(
    "--timeout-s", type=Range(), default=60.0, show_default=True, help="Seconds to wait for the last answer."
)
def command(endpoint: str | None, undo: bool, timeout_s: float) -> None:
    """Refuse new requests with shutting_down, and wait until every accepted one is answered."""
    status = owner.run(endpoint, "undrain" if undo else "drain", timeout_s=timeout_s)
    give_up = time.monotonic() + timeout_s
    with options.client(endpoint) as client:
        while not undo and status.queue.requests:
            if time.monotonic() >= give_up:
                raise Unavailable(f"{status.queue.requests} requests are open after {timeout_s:.0f} s")
            time.sleep(POLL_S)
            status = client.status()
