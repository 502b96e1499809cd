"""A progress bar on a terminal, in one line of stderr."""

from __future__ import annotations

import sys

import click

WIDTH = 24


def show(what: str, done: float) -> None:
    """Draw it for a share from 0 to 1; an empty `what` wipes it. Nothing is drawn where stderr is no terminal."""
    if sys.stderr.isatty():
        filled = int(done * WIDTH)
        bar = f"[{'█' * filled}{'·' * (WIDTH - filled)}] {what}" if what else ""
        click.echo(f"\r\033[K{bar}", err=True, nl=False)
