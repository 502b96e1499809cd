"""`gpu-server bench http`: put load on an HTTP service and report what it did."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from urllib.parse import urlsplit

import click
import msgspec

from gpu_server.bench.bodies import LONGEST_WORDS, requests
from gpu_server.bench.plan import Plan
from gpu_server.bench.report import table
from gpu_server.bench.run import bench
from gpu_server.cli import options
from gpu_server.cli.amounts import Range
from gpu_server.cli.bar import show

MOST_PROCESSES = 6
MOST_RATE = 1_000_000
MOST_S = 86_400


def checked(url: str) -> str:
    """The URL, if it is one that can be reached over HTTP. Raises UsageError."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:
        pass
    raise click.UsageError(f"{url!r} is not a URL like http://127.0.0.1:8000/embed")


def header(line: str) -> tuple[str, str]:
    """Name and value of a header line. Raises UsageError."""
    name, colon, value = line.partition(":")
    if not colon or not name.strip() or not line.isprintable():
        raise click.UsageError(f"{line!r} is not a header like 'Name: value'")
    return name.strip(), value.strip()


def default_processes() -> int:
    """What leaves most cores to a service on the same machine, and is enough for 20,000 requests/s on 16 cores."""
    return max(1, min(MOST_PROCESSES, len(os.sched_getaffinity(0)) * 3 // 8))


@click.command("http")
@click.argument("url")
@click.option(
    "--connections", type=click.IntRange(1, 20_000), default=32, show_default=True, help="Over all processes."
)
@click.option(
    "--rate",
    type=Range(0, MOST_RATE),
    default=0.0,
    help="Requests a second, at random times (open loop); without it each connection sends after its last answer.",
)
@click.option(
    "--texts", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Texts a request."
)
@click.option(
    "--words", type=Range(1, LONGEST_WORDS), default=20.0, show_default=True, help="Median length of a text."
)
@click.option(
    "--spread",
    type=Range(0, 5),
    default=1.3,
    show_default=True,
    help="Sigma of the lognormal lengths.",
)
@click.option("--model", default="", help="The body's `model`.")
@click.option(
    "--body",
    "body_file",
    type=click.Path(exists=True, dir_okay=False),
    help="A JSON body to send instead; one in each line of a .jsonl file.",
)
@click.option("--header", "-H", "headers", multiple=True, help="'Name: value', for every request.")
@click.option(
    "--duration",
    "duration_s",
    type=Range(0, MOST_S, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that are measured.",
)
@click.option(
    "--warm-up",
    "warm_up_s",
    type=Range(0, MOST_S),
    default=2.0,
    show_default=True,
    help="Seconds before them.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=Range(0, MOST_S, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds after which a request is given up.",
)
@click.option(
    "--processes",
    type=click.IntRange(0, 256),
    default=0,
    help="Client processes.  [default: 3/8 of the cores, at most 6]",
)
@click.option("--seed", type=int, default=0, help="Other texts and other times.")
@options.as_json
def http(
    url: str, as_json: bool, headers: tuple[str, ...], processes: int, connections: int, **given: Any
) -> None:
    """Send requests to URL (…/embed, …/v1/embeddings, or any with --body) and report rates and latencies.

    Exits with 1 if no request was answered with a 2xx status.
    """
    plan = Plan(
        url=checked(url),
        headers=tuple(map(header, headers)),
        connections=connections,
        processes=min(connections, processes or default_processes()),
        **given,
    )
    requests(plan)
    made = asyncio.run(bench(plan, show))
    show("", 1.0)
    click.echo(msgspec.json.encode(made).decode() if as_json else table(made))
    if not made.latency.requests:
        raise click.exceptions.Exit(1)
