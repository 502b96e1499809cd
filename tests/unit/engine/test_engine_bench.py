"""`gpu-server bench forward`: it times every model that can be served, against products of the model's own number type."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForSequenceClassification, BertConfig

from gpu_server import config
from gpu_server.cli.bench import table
from gpu_server.engine import bench
from gpu_server.errors import ConfigError, ModelFailed, OutOfMemory

MODULE = "timed_models"
CLASS = """
class Timed:
    {facts}
    def load(self, device): ...
    def forward(self, batch):
        x = next(iter(batch.values()))
        self.forwards = getattr(self, "forwards", 0) + 1
        {first}
        return [float(len(row)) for row in x]
"""
Forward = Callable[[str], bench.Report]


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Forward:
    """Time a source on the CPU, shortly."""
    monkeypatch.setattr(bench, "SECONDS", 0.01)
    monkeypatch.setattr(bench, "LATENCY_RUNS", 3)
    monkeypatch.setattr(bench.devices, "prepare", lambda *_: None)
    monkeypatch.setattr(bench, "matmul_ceiling", lambda device, dtype: 1e12 / dtype.itemsize)
    flags = {"device": "cpu"}
    return lambda source: bench.run(config.load(flags=flags, sources=(source,)), "", lambda phase, done: None)


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forward: Forward) -> Callable[..., bench.Report]:
    """Time a class with these attributes, whose forward begins with a statement."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(facts: str, first: str = "") -> bench.Report:
        (tmp_path / f"{MODULE}.py").write_text(CLASS.format(facts=facts, first=first))
        importlib.invalidate_caches()
        sys.modules.pop(MODULE, None)
        return forward(f"{MODULE}:Timed")

    return run


@pytest.fixture
def cross_encoder(tmp_path: Path) -> Path:
    """A tiny BERT with one label, whose tokenizer gives token types, in a table of one type."""
    made = BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, type_vocab_size=1, num_labels=1,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(made).save_pretrained(tmp_path)
    words = {word: number for number, word in enumerate(("[PAD]", "[CLS]", "[SEP]", "[UNK]"))}
    Tokenizer(WordLevel(words, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    facts = {"tokenizer_class": "TokenizersBackend", "pad_token": "[PAD]", "model_input_names": names}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(facts))
    return tmp_path


def test_a_model_that_takes_token_types_is_timed(cross_encoder: Path, forward: Forward) -> None:
    report = forward(str(cross_encoder))
    assert [row.tokens for row in report.rows] == [1024, 2048]
    assert all(row.ceiling_share for row in report.rows)
    assert (report.texts, report.ceiling_dtype, report.ceiling_tflops) == (True, "float32", 0.25)


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ('inputs = {"x": ("f32", (2, 3))}', (8, 8)),
        ('inputs = {"x": ("bf16", (-1, 3)), "y": ("utf8", ()), "z": ("bytes", ())}', (8, 8)),
        ('inputs = {"x": ("i64", (-1,)), "y": ("bool", ())}; cost = "x"', (1024, 30)),
        ('inputs = {"x": ("u8", (-1,))}; cost = "x"; example = lambda self: {"x": [1, 2, 3]}', (24, 8)),
        ("cost = 5; max_batch_items = 3; example = lambda self: {'x': [1.0, 2.0]}", (15, 3)),
    ],
)
def test_a_class_is_sent_its_example_or_what_it_declares(
    timed: Forward, facts: str, first: tuple[int, int]
) -> None:
    report = timed(facts)
    assert (report.rows[0].tokens, report.rows[0].items) == first
    assert not report.texts
    assert {row.ceiling_share for row in report.rows} == {None}


def test_a_class_that_says_nothing_of_its_items_is_refused_in_a_line(timed: Forward) -> None:
    with pytest.raises(ConfigError, match=rf"^{MODULE}:Timed: .* give the class inputs or an example\(\)$"):
        timed("")


def test_a_class_that_fails_on_what_was_made_up_is_asked_for_an_example(timed: Forward) -> None:
    with pytest.raises(ModelFailed, match=r"declared types and shapes: TypeError.*give the class an example"):
        timed('inputs = {"x": ("f32", ())}')


@pytest.mark.parametrize(
    ("runs", "dtype", "products"),
    [
        ("packed, bfloat16 products", "float32", torch.bfloat16),
        ("packed", "bfloat16", torch.bfloat16),
        ("packed", "float16", torch.float16),
        ("packed", "float32", torch.float32),
        ("", "", torch.float32),
    ],
)
def test_the_ceiling_on_a_cpu_is_of_the_model_s_own_products(
    timed: Forward, runs: str, dtype: str, products: torch.dtype
) -> None:
    describe = f"def describe(self, info): info.runs, info.dtype = {runs!r}, {dtype!r}"
    report = timed(f'inputs = {{"x": ("f32", (1,))}}\n    {describe}')
    assert report.ceiling_dtype == str(products).removeprefix("torch.")
    assert report.ceiling_tflops == 1 / products.itemsize


def test_no_short_time_is_too_short_for_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    assert bench.matmul_ceiling(torch.device("cpu"), torch.float32) > 0


def test_the_table_of_a_class_has_no_tokens_and_no_share(timed: Forward) -> None:
    said = table(timed('inputs = {"x": ("f32", (1,))}'))
    assert f"{MODULE}:Timed: on cpu, torch" in said
    assert "one item: p50" in said
    assert "items/s" in said
    assert "token" not in said
    assert said.splitlines()[4].split()[4] == "-"


class Batch:
    """Takes two seconds from the end of the one before it."""

    fitting, raised = 0, None

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock

    def wait(self) -> tuple[dict[str, object], list[object]]:
        self._clock[0] += 2.0
        return {}, []


@pytest.mark.parametrize("in_flight", [1, 2, 8])
def test_a_batch_is_timed_from_answer_to_answer(monkeypatch: pytest.MonkeyPatch, in_flight: int) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    under_way: list[Batch] = []

    class Runner:
        def enqueue(self, inputs: object, params: object) -> Batch:
            under_way.append(Batch(clock))
            return under_way[-1]

    assert bench.timed_batches(Runner(), {}, in_flight, 10.0) == 2.0  # type: ignore[arg-type]
    assert clock[0] == 2.0 * len(under_way)


@pytest.mark.parametrize(
    ("first", "kind", "said"),
    [
        ("if self.forwards > 5: return [float('nan') for _ in x]", ModelFailed, "NaN"),
        (
            "if len(x) > 40: raise __import__('torch').OutOfMemoryError",
            OutOfMemory,
            "one that costs 32 may fit",
        ),
        ("if len(x) > 40: raise KeyError(7)", ModelFailed, "a batch fails, its parts do not: KeyError: 7"),
    ],
)
def test_what_fails_or_runs_in_parts_is_no_figure(
    timed: Callable[..., bench.Report], first: str, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        timed('inputs, check_finite = {"x": ("f32", (1,))}, True', first)


def test_a_device_without_room_for_the_ceiling_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*size: int, **options: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "randn", full)
    with pytest.raises(
        OutOfMemory, match=r"^no room beside the model for the products of the ceiling, 8 MiB$"
    ):
        bench.matmul_ceiling(torch.device("cpu"), torch.float16)


def test_a_limit_of_memory_is_kept(
    forward: Forward, cross_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[int] = []
    monkeypatch.setattr(bench.memory, "bound", lambda device, mib: bound.append(mib))
    monkeypatch.setattr(
        bench, "load", lambda *_: pytest.fail("loaded") if bound != [777] else sys.exit("bound before")
    )
    monkeypatch.setenv("GPU_SERVER_MAX_MEMORY_MB", "777")
    with pytest.raises(SystemExit, match="bound before"):
        forward(str(cross_encoder))


def test_the_table_says_how_long_the_one_text_was(
    forward: Forward, cross_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SINGLE_TOKENS", 5)
    assert "one text of 5 tokens: p50" in table(forward(str(cross_encoder)))


def test_what_was_not_measured_is_no_number(cross_encoder: Path, forward: Forward) -> None:
    report = forward(str(cross_encoder))
    assert all(row.bare_us is None and row.loop_share is None for row in report.rows)
    assert table(report).splitlines()[-1].split()[-2:] == ["-", "-"]
    assert "graphs" not in table(report)
