"""`gpu-server top`: the daemon's last seconds, live in the terminal."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import click

from gpu_server.cli import options
from gpu_server.cli.amounts import Range
from gpu_server.cli.screen import ASCII, BLOCKS, draw
from gpu_server.client import Client
from gpu_server.errors import RemoteError
from gpu_server.wire.documents import Status
from gpu_server.wire.monitoring import Point

KEPT = 600
_ENTER, _LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_REST = "\033[H", "\033[K", "\033[J"


@click.command("top")
@options.endpoint
@click.option("--every", "every_s", default=1.0, type=Range(0.1, 3600), help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Print one screen and end.")
def command(endpoint: str | None, every_s: float, once: bool) -> None:
    """Watch throughput, latency, queue and memory; q quits. Prints one screen where there is no terminal."""
    with options.client(endpoint) as client:
        view = View(client)
        if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            view.look()
            click.echo("\n".join(view.lines()))
            return
        with _terminal():
            while True:
                view.try_to_look()
                sys.stdout.write(
                    _HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in view.lines()) + _CLEAR_REST
                )
                sys.stdout.flush()
                if _key(every_s) in ("q", "Q", "\x03", "\x04"):
                    return


class View:
    """What is known of a daemon: its last status and points, and why there is no newer one."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._status: Status | None = None
        self._points: list[Point] = []
        self._note = ""

    def look(self) -> None:
        """Ask the daemon. Raises RemoteError."""
        self._status = self._client.status()
        last = self._points[-1].number if self._points else 0
        self._points = [*self._points, *self._client.history(last).points][-KEPT:]
        self._note = ""

    def try_to_look(self) -> None:
        """Ask the daemon; what it answered before stays if it does not."""
        try:
            self.look()
        except RemoteError as error:
            self._note = error.message

    def lines(self) -> list[str]:
        """One screen for the terminal as it is now."""
        size = shutil.get_terminal_size()
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        return draw(
            self._status,
            self._points,
            width=size.columns,
            height=max(1, size.lines - 1),
            note=self._note,
            colour=_has_colour(),
            ramp=BLOCKS if encoding == "utf8" else ASCII,
        )


def _has_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def _terminal() -> Iterator[None]:
    """Keys one by one, unseen, on a screen of its own; the terminal is as it was afterwards."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    sys.stdout.write(_ENTER)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key(wait_s: float) -> str:
    """The key that is pressed within so many seconds, "" for none; the end of input is a control-D."""
    if not select.select([sys.stdin], [], [], wait_s)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") or "\x04"
