"""`gpu-server keys`: a pair of CURVE keys, for a daemon or a client on tcp."""

from __future__ import annotations

from pathlib import Path

import click

from gpu_server import curve


@click.command("keys")
@click.argument("stem", type=click.Path(path_type=Path), metavar="NAME")
def command(stem: Path) -> None:
    """Make a pair: the secret key in NAME.key, which its owner alone can read, and the public one in NAME.pub.

    NAME may have folders before it. For a daemon, name NAME.key in --curve-key-file and give NAME.pub to its clients. For a
    client, add NAME.pub to the file of --curve-clients-file.
    """
    for path in curve.make(stem):
        click.echo(path)
