"""The three ways to run a text model's layers in CUDA graphs, in one process: fused by hand, compiled, and as they are.

    python scripts/bench/layers.py [MODEL] [--shape bert-base] [--rounds 5]

Times the engine's own path, wire tensors in and out, two batches in flight, by tokens a batch: one text for 16, then mixed
lengths as in `gpu-server bench forward`. The ways take turns of 0.2 s each; medians over the rounds. A hand-made layer is
worth its code where it takes at least 5 % less time than the compiled one: the last column.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

from gpu_server import specs
from gpu_server.config import Config, EngineConfig, ModelConfig
from gpu_server.engine import bench, shapes
from gpu_server.engine import device as devices
from gpu_server.engine.loader import LoadedModel, load
from gpu_server.errors import ConfigError

TOKENS = (16, 64, 256, 1024, 4096, 16_384)
TURN_S = 0.2
WAYS = {"fused": {}, "compiled": {"fused": False}, "plain": {"fused": False, "compile": False}}
"""What each changes of the engine's settings."""
RUNS = {"fused": "fused graphs", "compiled": "compiled graphs", "plain": "graphs"}
"""What a model says of how it runs in each."""


def main() -> None:
    """Print how each way runs, and a line for each size of batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("model", nargs="?", default="")
    what.add_argument("--shape", default="", choices=["", *shapes.SHAPES])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    try:
        device = devices.choose("cuda")
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    devices.prepare(device, 0)
    devices.use_own_stream(device, [options.model])
    with shapes.folder(options.shape) as made:
        ways = {name: loaded(str(made or options.model), changed) for name, changed in WAYS.items()}
    for name, one in ways.items():
        if one.info.runs != RUNS[name]:
            raise SystemExit(
                f"nothing to compare: asked for {RUNS[name]}, {one.info.name} runs {one.info.runs}"
            )
    info = ways["fused"].info
    print(f"{options.shape or info.name}: {info.dtype}, {devices.describe(device)}; µs a batch")
    print(f"{'tokens':>8}" + "".join(f"{name:>10}" for name in ways) + f"{'compiled/fused':>16}")
    for tokens in TOKENS:
        took = timed(ways, tokens, options.rounds)
        cells = "".join(f"{seconds * 1e6:10.0f}" for seconds in took.values())
        print(f"{tokens:8}{cells}{took['compiled'] / took['fused']:16.3f}", flush=True)


def loaded(source: str, changed: dict[str, bool]) -> LoadedModel:
    """The model as an engine process with these settings has it."""
    settings = Config(engine=replace(EngineConfig(device="cuda"), **changed))
    model = specs.of_model(ModelConfig(source=source))
    return load(model, specs.of_engine(settings, (model,)), devices.choose("cuda"), lambda phase, done: None)


def timed(ways: dict[str, LoadedModel], tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of a batch in each way."""
    text = ways["plain"].info.text
    assert text is not None
    lengths = [tokens] if tokens == bench.SINGLE_TOKENS else bench.mixed_lengths(tokens, text.max_length)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, one in ways.items():
            took = bench.timed_batches(one.runner, bench.made_inputs(one, lengths), 2, TURN_S)
            if turn:  # the first is for warming up
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
