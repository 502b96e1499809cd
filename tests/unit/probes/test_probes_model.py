"""What `gpu-server check` hears of a model that is loaded for it."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpu_server.engine import device
from gpu_server.probes import model
from gpu_server.wire.events import EngineSpec, ModelSpec

MODULE = "probed_models"
BARE = """
class Bare:
    def load(self, device): ...
    def forward(self, batch): return batch["x"]
"""
EXAMPLE = "    def example(self): return {'x': [1.0]}\n"
OWN = "    def warm_up(self, run): run({'x': [[1.0]]})\n"
Probe = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Probe:
    """Probe class Bare of a module with this text: the exit code, and what is written to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(device, "prepare", lambda *_: None)

    def run(text: str) -> tuple[int, str, str]:
        (tmp_path / f"{MODULE}.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop(MODULE, None)
        spec = EngineSpec(
            device="cpu", threads=1, max_memory_mb=0, max_batch_tokens=0, max_batch_items=10, batches_in_flight=2,
            max_batch_bytes=1, graphs=False, compiled=False, fused=False, log_level="error", log_format="text",
            models=(ModelSpec(name="bare", source=f"{MODULE}:Bare"),),
        )  # fmt: skip
        monkeypatch.setattr(sys, "stdin", io.StringIO(msgspec.json.encode(spec).decode()))
        return model.main(), *capsys.readouterr()

    return run


@pytest.mark.parametrize(("text", "ran"), [(BARE, False), (BARE + EXAMPLE, True), (BARE + OWN, True)])
def test_a_class_that_does_not_inherit_is_told_to_have_run_if_it_has(
    probe: Probe, text: str, ran: bool
) -> None:
    code, out, err = probe(text)
    assert (code, err) == (0, "")
    answer: dict[str, Any] = json.loads(out)
    assert [(m["name"], m["example"]) for m in answer["models"]] == [("bare", ran)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            BARE.replace("device): ...", "device): 1 / 0"),
            f"model 'bare' fails to load: ZeroDivisionError: division by zero ({MODULE}.py:3)",
        ),
        (
            BARE.replace('batch["x"]', 'batch["y"]') + EXAMPLE,
            f"model 'bare' fails on its own example: KeyError: 'y' ({MODULE}.py:4)",
        ),
    ],
)
def test_what_fails_is_one_line_with_its_place(probe: Probe, text: str, said: str) -> None:
    assert probe(text) == (1, "", f"{said}\n")
