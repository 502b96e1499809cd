"""Options that several verbs share, flags made from the settings' declarations, and variables that are none of theirs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from gpu_server import variables
from gpu_server.client import Client
from gpu_server.config import SECTIONS, ModelConfig, meaning, split_name

Command = TypeVar("Command", bound=Callable[..., Any])
Models = TypeVar("Models", str, tuple[str, ...])

endpoint = click.option("--endpoint", metavar="URL", help="The daemon's socket (GPU_SERVER_ENDPOINT).")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def refuse_empty(context: click.Context, parameter: click.Parameter, given: Models) -> Models:
    """Callback of `[NAME=]MODEL`: an empty one is a mistake, most often a shell variable that is not set."""
    if context.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT:
        return given
    for model in (given,) if isinstance(given, str) else given:
        if not split_name(model)[1]:
            raise click.BadParameter(f"{model!r} names no model.", context, parameter)
    return given


def settings(command: Command) -> Command:
    """Add a flag for every setting that has one; values stay text, `config.load` parses and checks them."""
    for kind in reversed(SECTIONS.values()):
        command = _flags(kind)(command)
    return command


def engine_settings(command: Command) -> Command:
    """Add the flags of the engine's settings, without the daemon's limits of time, for verbs that load models themselves."""
    return _flags(SECTIONS["engine"], without=("load_timeout_s", "batch_timeout_s"))(command)


def model_settings(command: Command) -> Command:
    """Add the flags of a single model's settings, but for those that the engine has too."""
    return _flags(ModelConfig)(command)


def all_model_settings(command: Command) -> Command:
    """Add the flags of all settings of a single model."""
    return _flags(ModelConfig, also=("max_batch_tokens", "max_batch_items"))(command)


def _flags(
    kind: type, also: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for about in reversed(fields(kind)):
            if about.name in without or (not about.metadata["flag"] and about.name not in also):
                continue
            default = f"  [default: {str(about.default).lower()}]" if about.default not in ("", None) else ""
            text = meaning(about.metadata) + default
            flag = about.name.replace("_", "-")
            if isinstance(about.default, bool):
                command = click.option(f"--{flag}/--no-{flag}", about.name, default=None, help=text)(command)
            else:
                command = click.option(f"--{flag}", about.name, metavar="VALUE", help=text)(command)
        return command

    return add


def warn_of_variables() -> None:
    """Say which GPU_SERVER_* variables nothing reads, one line each."""
    # Where it cannot be written (a full disk), nobody is served worse for it.
    with suppress(OSError):
        for line in variables.unread():
            click.echo(f"gpu-server: warning: {line}", err=True)


def client(url: str | None) -> Client:
    """A client for a short command."""
    return Client(url, timeout_s=10.0)
