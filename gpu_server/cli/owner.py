"""What the verbs on the control socket share: their options, the call with a progress bar, and what they print."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import click

from gpu_server import endpoint as endpoints
from gpu_server.calls import Params
from gpu_server.cli import bar
from gpu_server.cli.amounts import Range
from gpu_server.client import Client
from gpu_server.errors import RemoteError, Unavailable
from gpu_server.wire.documents import Status, from_json

POLL_S = 0.1
STATUS_TIMEOUT_S = 2.0

drain_first = click.option(
    "--drain-first", is_flag=True, help="End the old engine before the new one loads: for too little memory for both."
)  # fmt: skip
timeout_s = click.option(
    "--timeout-s", type=Range(), default=3600.0, show_default=True, help="Seconds to wait for the outcome."
)


def run(
    url: str | None, op: str, *, timeout_s: float, model: str = "", params: Params | None = None
) -> Status:
    """Send a verb and show how far the new engine is until it is answered; the daemon's status after it."""
    from gpu_server.daemon.instance import control_endpoint

    url = url or endpoints.client_default()
    endpoints.check(url)
    control_url = control_endpoint(url)
    # The pool is left last: an interrupt closes the client, which ends the call that the pool waits for.
    with (
        ThreadPoolExecutor(1) as pool,
        Client(control_url, timeout_s=timeout_s) as control,
        Client(url, timeout_s=STATUS_TIMEOUT_S) as watcher,
    ):
        call = pool.submit(control.request, op=op, model=model, params=params)
        try:
            while not wait([call], POLL_S).done:
                with suppress(RemoteError):
                    _show(watcher.status())
        finally:
            bar.show("", 1.0)
        try:
            reply = call.result()
        except Unavailable as error:
            # People know the daemon by its endpoint, not by the socket beside it.
            raise Unavailable(error.message.replace(control_url, url)) from None
        return from_json(Status, reply.outputs["document"].strings()[0])


def change(url: str | None, op: str, **options: Any) -> None:
    """Run a verb that changes the models, and print those that are served now."""
    for info in run(url, op, **options).models:
        click.echo(f"{info.name}  version {info.version}")


def _show(status: Status) -> None:
    for engine in status.engines:
        if engine.state in ("starting", "loading", "warming"):
            bar.show(engine.phase, engine.progress)
        elif engine.state == "stopping":
            bar.show("the old engine finishes its batches", 1.0)
