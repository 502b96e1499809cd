"""`gpu-server bench`: time the engine on this machine, or a service over HTTP."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
import msgspec

from gpu_server import config, source
from gpu_server.cli import options
from gpu_server.cli.bar import show
from gpu_server.cli.bench_http import http


@click.group("bench")
def command() -> None:
    """Time parts of the server on this machine, or a whole service over HTTP."""


command.add_command(http)


@command.command("forward")
@click.argument("model", required=False, default="", metavar="[[NAME=]MODEL]", callback=options.refuse_empty)
@click.option("--shape", default="", help="Random weights in a known shape: minilm, bert-base, bert-large, …")
@options.as_json
@options.model_settings
@options.engine_settings
def forward(model: str, shape: str, as_json: bool, **flags: Any) -> None:
    """Load MODEL in this process and time its batches, its latency and the device's matmul ceiling."""
    if shape and (model or flags["revision"]):
        raise click.UsageError("--shape is a model of its own: leave out MODEL and --revision.")
    settings = config.load(flags=flags, sources=(model,))
    source.search_current_folder()
    source.check(settings.models[0].source)
    report = import_module("gpu_server.engine.bench").run(settings, shape, show)
    show("", 1.0)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


def table(report: Any) -> str:
    """The report as text."""
    how = ", ".join(filter(None, (report.dtype, report.runs, f"on {report.device}", f"torch {report.torch}")))
    one, cost, rate = (
        (f"one text of {report.single_tokens} tokens", "tokens", "Mtok/s")
        if report.texts
        else ("one item", "cost", "items/s")
    )
    graphed = report.capture_s is not None
    took = f" (kernels {report.kernels_s:.1f} s, capture {report.capture_s:.2f} s)" if graphed else ""
    about = [
        f"matmul ceiling {report.ceiling_tflops:.3g} TFLOP/s in {report.ceiling_dtype}",
        f"load and warm-up {report.load_s:.1f} s{took}",
    ]
    if report.memory_mib is not None:
        graphs = f" (graphs {report.capture_mib:.0f} MiB)" if graphed else ""
        about.append(f"device memory {report.memory_mib:.0f} MiB{graphs}")
    lines = [
        f"{report.model}: {how}",
        "; ".join(about),
        f"{one}: p50 {report.single_p50_us:.0f} us, p99 {report.single_p99_us:.0f} us",
        f"{cost:>8} {'items':>6} {'us/batch':>10} {rate:>9} {'of ceiling':>11} {'replay us':>10} {'of batch':>9}",
    ]
    for row in report.rows:
        speed = f"{row.tokens_per_s / 1e6:.3f}" if report.texts else f"{row.items / row.batch_us * 1e6:.0f}"
        share = "-" if row.ceiling_share is None else f"{row.ceiling_share:.1%}"
        bare = "-" if row.bare_us is None else f"{row.bare_us:.0f}"
        of_batch = "-" if row.loop_share is None else f"{row.loop_share:.1%}"
        lines.append(
            f"{row.tokens:8} {row.items:6} {row.batch_us:10.0f} {speed:>9} {share:>11} {bare:>10} {of_batch:>9}"
        )
    return "\n".join(lines)
