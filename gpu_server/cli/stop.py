"""`gpu-server stop`: ask the daemon to drain and end."""

from __future__ import annotations

import os
import signal
import time

import click

from gpu_server import endpoint as endpoints
from gpu_server.cli import options
from gpu_server.cli.amounts import Range
from gpu_server.errors import EndpointForbidden, Unavailable

POLL_S = 0.05


@click.command("stop")
@options.endpoint
@click.option(
    "--timeout-s", type=Range(), default=60.0, show_default=True, help="Seconds to wait for its end."
)
def command(endpoint: str | None, timeout_s: float) -> None:
    """Let the daemon finish what it accepted, then end; waits until it has."""
    from gpu_server.daemon.instance import holder_pid

    url = endpoint or endpoints.client_default()
    endpoints.check(url)
    pid = holder_pid(url)
    if pid is None:
        raise Unavailable(f"no gpu-server daemon at {url}")
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        raise EndpointForbidden(f"the daemon at {url} (pid {pid}) belongs to another user") from None
    give_up = time.monotonic() + timeout_s
    while holder_pid(url) == pid:
        if time.monotonic() >= give_up:
            raise Unavailable(f"the daemon (pid {pid}) has not ended after {timeout_s:.0f} s")
        time.sleep(POLL_S)
