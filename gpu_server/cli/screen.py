"""What `gpu-server top` shows, as lines of text: current values beside bars of their last seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gpu_server.cli.amounts import memory, number
from gpu_server.wire.documents import Status
from gpu_server.wire.monitoring import Point

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " .:-=+*#@"
_BOLD, _COLOUR, _PLAIN = "\033[1m", "\033[36m", "\033[0m"
_LABEL, _VALUE = 16, 10


class Row(NamedTuple):
    """One plotted value. top: the value that fills a bar, None for the largest that is shown."""

    label: str
    value: Callable[[Point], float]
    text: Callable[[float], str] = number
    top: float | None = None


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _memory(value: float) -> str:
    return memory(int(value))


ROWS = (
    Row("requests/s", lambda p: p.requests),
    Row("tokens/s", lambda p: p.tokens),
    Row("failures/s", lambda p: p.failures),
    Row("latency p50 ms", lambda p: p.p50_ms),
    Row("latency p99 ms", lambda p: p.p99_ms),
    Row("wait p99 ms", lambda p: p.queue_p99_ms),
    Row("queue items", lambda p: p.queue_items),
    Row("in flight", lambda p: p.in_flight),
    Row("items a batch", lambda p: p.batch_items),
    Row("forward runs", lambda p: p.busy, _percent, 1.0),
    Row("memory", lambda p: p.memory, _memory),
    Row("web workers", lambda p: p.workers),
)
GPU_ROWS = (
    Row("GPU busy", lambda p: p.gpu_utilization, _percent, 1.0),
    Row("GPU memory", lambda p: p.gpu_memory, _memory),
    Row("GPU watts", lambda p: p.gpu_power_w),
)


def bars(values: Sequence[float], top: float, ramp: str = BLOCKS) -> str:
    """One character a value; what is not 0 can be seen."""
    if top <= 0:
        return ramp[0] * len(values)
    last = len(ramp) - 1
    return "".join(ramp[min(last, max(value > 0, round(value / top * last)))] for value in values)


def draw(
    status: Status | None,
    points: Sequence[Point],
    *,
    width: int,
    height: int,
    note: str = "",
    colour: bool = False,
    ramp: str = BLOCKS,
) -> list[str]:
    """At most `height` lines of at most `width` characters (colour codes apart); `note` is shown at the top."""
    lines = [_heading(status, note)[:width]]
    rows = ROWS + (GPU_ROWS if status is not None and status.gpus else ())
    room = max(0, width - _LABEL - _VALUE - 2)
    for row in rows:
        values = [row.value(point) for point in points[-room:]] if room else []
        value = row.text(row.value(points[-1])) if points else "-"
        plot = bars(values, row.top or max(values, default=0.0), ramp)
        if colour:
            lines.append(f"{row.label:{_LABEL}}{_BOLD}{value:>{_VALUE}}{_PLAIN}  {_COLOUR}{plot}{_PLAIN}")
        else:
            lines.append(f"{row.label:{_LABEL}}{value:>{_VALUE}}  {plot}"[:width])
    return lines[:height]


def _heading(status: Status | None, note: str) -> str:
    if status is None:
        return f"gpu-server: {note}"
    state = note or f"{status.state}{f', {status.phase} ({status.progress:.0%})' if status.phase else ''}"
    devices = ", ".join(dict.fromkeys(engine.device for engine in status.engines if engine.device))
    models = ", ".join(model.name for model in status.models)
    return f"gpu-server: {state}  up {status.uptime_s:.0f} s  {devices}  {models}"
