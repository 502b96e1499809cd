"""The `gpu-server` command: one file per verb, loaded when it is called."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module

import click

from gpu_server._version import __version__
from gpu_server.errors import GPUServerError, RemoteError

VERBS = (
    "autoscale",
    "bench",
    "check",
    "config",
    "drain",
    "embed",
    "keys",
    "load",
    "models",
    "reload",
    "start",
    "status",
    "stop",
    "systemd",
    "top",
    "unload",
)


class Verbs(click.Group):
    """Finds each verb's command in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"gpu_server.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; where there is none, the error says which it may have been."""
        if args[0] not in VERBS and (near := get_close_matches(args[0], VERBS)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(map(repr, near))}?")
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gpu-server")
def cli() -> None:
    """Put a GPU model behind Gunicorn and Flask."""


def main() -> None:
    """Run the command line; every mistake ends in one line on stderr and its own exit code."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except RemoteError as error:
        _fail(error.message, error.exit_code)
    except GPUServerError as error:
        _fail(str(error), error.exit_code)


def _fail(message: str, code: int) -> None:
    click.echo(f"gpu-server: {message}", err=True)
    sys.exit(code)
