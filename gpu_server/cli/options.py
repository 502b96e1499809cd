"""Options that several verbs share, and flags made from the settings' declarations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import click

from gpu_server.client import Client
from gpu_server.config import SECTIONS

Command = TypeVar("Command", bound=Callable[..., Any])

endpoint = click.option("--endpoint", metavar="URL", help="The daemon's socket (GPU_SERVER_ENDPOINT).")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def settings(command: Command) -> Command:
    """Add a flag for every setting that has one; values stay text, `config.load` parses and checks them."""
    for kind in reversed(SECTIONS.values()):
        for about in reversed(fields(kind)):
            if about.metadata["flag"]:
                default = f"  [default: {about.default}]" if about.default not in ("", None) else ""
                text = about.metadata["help"] + default
                command = click.option(
                    f"--{about.name.replace('_', '-')}", about.name, metavar="VALUE", help=text
                )(command)
    return command


def client(url: str | None) -> Client:
    """A client for a short command."""
    return Client(url, timeout_s=10.0)
