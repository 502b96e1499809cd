"""Numbers as people read and give them."""

from __future__ import annotations

import math
from typing import Any

import click


class Range(click.FloatRange):
    """Numbers between two bounds; nan, which no bound keeps out, is none of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Ends the command with a usage error if it is none, or out of bounds."""
        given = super().convert(value, param, ctx)
        if math.isnan(given):
            self.fail(f"{value} is not a number.", param, ctx)
        return given


def memory(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 1 << 30 else f"{size / 2**20:.0f} MiB"


def number(value: float) -> str:
    """Three significant digits, with k or M from ten thousand on."""
    for limit, unit in ((1e7, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.3g}{unit}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
