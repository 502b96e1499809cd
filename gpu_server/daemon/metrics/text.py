"""The Prometheus text exposition format 0.0.4 of families and their series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_server.daemon.metrics.families import FAMILIES, PREFIX, Family
from gpu_server.daemon.metrics.histogram import Histogram

Series = Mapping[Any, float | Histogram]
"""Values of one family by the tuple of its labels' values."""
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def render(series: Mapping[str, Series], tei: bool = False) -> str:
    """The text of all families; `series` has each by its name without the prefix, none is left out.

    tei: once more under the names that Text-Embeddings-Inference has for them.
    """
    lines: list[str] = []
    for family in FAMILIES:
        lines += _family(family, family.name, series[family.name.removeprefix(PREFIX)])
    for family in FAMILIES if tei else ():
        if family.tei:
            lines += _family(family, family.tei, series[family.name.removeprefix(PREFIX)])
    return "\n".join(lines) + "\n"


def _family(family: Family, name: str, series: Series) -> Iterator[str]:
    yield f"# HELP {name} {family.help}"
    yield f"# TYPE {name} {family.kind}"
    for values, value in series.items():
        labels = [
            f'{label}="{text.translate(_ESCAPES)}"' for label, text in zip(family.labels, values, strict=True)
        ]
        if isinstance(value, Histogram):
            yield from _histogram(name, labels, value)
        else:
            yield f"{name}{_braces(labels)} {value!r}"


def _histogram(name: str, labels: list[str], histogram: Histogram) -> Iterator[str]:
    counts = histogram.cumulative()
    start = f"{name}_bucket{{{''.join(label + ',' for label in labels)}le="
    for bound, count in zip(histogram.bounds, counts, strict=False):
        yield f'{start}"{bound:g}"}} {count}'
    yield f'{start}"+Inf"}} {counts[-1]}'
    yield f"{name}_sum{_braces(labels)} {histogram.total!r}"
    yield f"{name}_count{_braces(labels)} {counts[-1]}"


def _braces(labels: list[str]) -> str:
    return f"{{{','.join(labels)}}}" if labels else ""
