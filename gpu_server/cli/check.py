"""`gpu-server check`: look at this machine, the daemon and the web tier, and say what is wrong and how to mend it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import click
import msgspec

from gpu_server import config, source
from gpu_server import endpoint as endpoints
from gpu_server.checks import daemon, device, environment, models, probe, web
from gpu_server.checks.finding import Finding
from gpu_server.cli import bar, options
from gpu_server.client import Client

TORCH_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 900.0
POLL_S = 0.1
MARKS = {"ok": "ok     ", "info": "info   ", "warning": "WARNING", "error": "ERROR  "}


@click.command("check")
@click.argument("sources", nargs=-1, metavar="[[NAME=]MODEL]...", callback=options.refuse_empty)
@click.option("--config", "path", type=click.Path(path_type=Path), help="The daemon's TOML file.")
@options.endpoint
@click.option(
    "--gunicorn", "gunicorn", default=web.STOCK, show_default=True, help="Gunicorn's options and the app."
)
@click.option("--gunicorn-pid", type=click.IntRange(1), help="A running master, whose own they are.")
@click.option(
    "--load/--no-load",
    "load",
    default=None,
    help="Load and run the models in a process of their own.  [default: unless a daemon serves]",
)
@options.model_settings
@options.engine_settings
@options.as_json
def command(
    sources: tuple[str, ...],
    path: Path | None,
    endpoint: str | None,
    gunicorn: str,
    gunicorn_pid: int | None,
    load: bool | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Look at driver, torch, models, socket, daemon, Gunicorn's settings and what its app imports.

    MODEL and its settings are as in `start`. Nothing is changed, and what may crash runs in processes of its own. Exits with
    1 on an error.
    """
    settings = config.load(path, flags, sources)
    url = endpoint or settings.server.endpoint or endpoints.client_default()
    tier = web.Gunicorn.running(gunicorn_pid) if gunicorn_pid else web.Gunicorn.given(gunicorn)
    source.search_current_folder()
    found: list[Finding] = []

    def models() -> Sequence[Finding]:
        said = {finding.check: finding.severity for finding in found}
        answers = said.get("daemon", "error")
        asked = answers != "ok" if load is None else load
        web_only = said["torch"] == "info" and not (path or settings.models)
        return the_models(settings, asked, needed=bool(load) or (answers == "error" and not web_only))

    steps: Sequence[tuple[str, Callable[[], Sequence[Finding]]]] = (
        ("variables", environment.variables),
        ("driver and torch", machine),
        ("daemon", lambda: the_daemon(url)),
        ("models", models),
        ("web tier", lambda: web.look(tier)),
    )
    for number, (what, look) in enumerate(steps):
        seen = watched(what, number / len(steps), look)
        found += seen
        if seen and not as_json:
            click.echo(show(seen))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    if any(finding.severity == "error" for finding in found):
        raise click.exceptions.Exit(1)


def watched(what: str, done: float, look: Callable[[], Sequence[Finding]]) -> Sequence[Finding]:
    """What a step finds; a bar says meanwhile which step it is and for how long it has taken."""
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        while wait([looking], POLL_S).not_done:
            bar.show(f"looking at: {what}, {time.monotonic() - started:.0f} s", done)
    bar.show("", done)
    return looking.result()


def machine() -> list[Finding]:
    """Driver and torch."""
    facts = device.read_driver()
    try:
        built = probe.run("torch_build", {}, timeout_s=TORCH_TIMEOUT_S, env=os.environ)
    except probe.ProbeFailed as error:
        broken = Finding("torch", "error", f"importing torch ends its process: {error}", "install torch anew")
        return [device.driver(facts), broken]
    return [device.driver(facts), device.torch_build(built, facts)]


def the_daemon(url: str) -> list[Finding]:
    """Socket, leftovers, and what the daemon says of itself if it can be reached."""
    found = [daemon.socket(url)]
    if found[0].severity == "ok":
        left = daemon.leftovers(url)
        if left is not None:
            return [*found, left]
        with Client(url, timeout_s=daemon.TIMEOUT_S) as client:
            found += daemon.serving(client)
    return found


def the_models(settings: config.Config, load: bool, needed: bool) -> Sequence[Finding]:
    """What is wrong with the models; loads them only if nothing is wrong before. needed: they are to run here."""
    found = models.names(settings, needed)
    if found:
        return found
    if load:
        return models.load(settings, LOAD_TIMEOUT_S)
    named = ", ".join(model.name or source.name_of(model.source) for model in settings.models)
    return [Finding("model", "info", f"{named}: not loaded", "--load tries")] if named else []


def show(found: Iterable[Finding]) -> str:
    """A line for each finding, and below it what to do."""
    lines = []
    for finding in found:
        lines.append(f"{MARKS[finding.severity]}  {finding.check:<9}  {finding.found}")
        if finding.fix and finding.severity != "ok":
            lines.append(f"{'':>20}→ {finding.fix}")
    return "\n".join(lines)
