"""`gpu-server status`: what the daemon does right now."""

from __future__ import annotations

import sys

import click

from gpu_server.cli import options
from gpu_server.cli.amounts import memory
from gpu_server.wire.documents import Status, to_json
from gpu_server.wire.monitoring import EngineMemory

SHOWN_LABELS = 5


@click.command("status")
@options.endpoint
@options.as_json
def command(endpoint: str | None, as_json: bool) -> None:
    """Show the daemon's state, engine, models and queue; exit 0 when it is ready, 3 when it is not."""
    with options.client(endpoint) as client:
        status = client.status()
    click.echo(to_json(status).decode() if as_json else describe(status))
    sys.exit(0 if status.state == "ready" else 3)


def describe(status: Status) -> str:
    """One screen of text."""
    lines = [
        f"{status.state}{f': {status.phase} ({status.progress:.0%})' if status.phase else ''}",
        f"daemon   pid {status.pid}, version {status.version}, up {status.uptime_s:.0f} s, {status.endpoint}",
    ]
    for engine in status.engines:
        error = f", {engine.error}" if engine.error else ""
        lines.append(
            f"engine   pid {engine.pid}, {engine.device or 'no device yet'}, {engine.state}, "
            f"{engine.in_flight} batches in flight, {engine.restarts} restarts{error}"
        )
        lines += _memory(engine.memory)
    for gpu in status.gpus:
        lines.append(
            f"gpu      {gpu.name}: {gpu.utilization:.0%} busy, {memory(gpu.memory_used)} of "
            f"{memory(gpu.memory_total)} in use, {gpu.power_w:.0f} W, {gpu.temperature_c} °C"
        )
    for model in status.models:
        facts = [model.kind, model.dtype, model.runs, f"version {model.version}"]
        if model.dimensions:
            facts.append(f"{model.dimensions} dimensions")
        if len(model.labels) > 1:
            facts.append(f"{len(model.labels)} labels: {', '.join(model.labels[:SHOWN_LABELS])}")
        if model.text is not None:
            facts.append(f"max length {model.text.max_length}")
        lines.append(f"model    {model.name}: {', '.join(f for f in facts if f)}")
    queue = status.queue
    lines.append(
        f"queue    {queue.requests} requests, {queue.items} items, {queue.tokens} tokens, {queue.bytes} bytes"
    )
    workers = f"{status.web.workers} worker{'' if status.web.workers == 1 else 's'}"
    lines.append(f"web      {workers}, {status.web.in_flight} requests in flight")
    lines.append(
        "counts   "
        + ", ".join(
            f"{name} {count}" for name, count in status.counters.items() if count or name == "requests"
        )
    )
    return "\n".join(lines)


def _memory(held: EngineMemory) -> list[str]:
    """Who holds how much of the device."""
    if not held.total:
        return []
    lines = [
        f"memory   {memory(held.reserved)} held of {memory(held.limit)}, {memory(held.allocated)} in use, "
        f"{memory(held.peak)} at most; {memory(held.free)} of the device free"
    ]
    for model in held.models:
        lines.append(
            f"         {model.name}: weights {memory(model.weights)}, warm-up {memory(model.warm_up)}, "
            f"activations {memory(model.activations)}"
        )
    return lines
