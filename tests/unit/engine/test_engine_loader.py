"""From a spec to a warmed model: any class with load and forward; what it declares wrongly is said plainly."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import msgspec
import pytest
import torch

from gpu_server.engine import loader
from gpu_server.engine.blame import LoadRaised
from gpu_server.engine.loader import LoadedModel
from gpu_server.errors import ConfigError, ModelClassError, ModelFailed
from gpu_server.wire import Tensor
from gpu_server.wire.documents import InputInfo
from gpu_server.wire.events import EngineSpec, ModelSpec

CPU = torch.device("cpu")
MODULE = "user_models"
ENGINE = EngineSpec(
    device="cpu", threads=1, max_memory_mb=0, max_batch_tokens=100, max_batch_items=10, batches_in_flight=2,
    max_batch_bytes=1, graphs=False, compiled=False, fused=False, log_level="info", log_format="text", models=(),
)  # fmt: skip
DUCK = """
import torch

class Duck:
    inputs = {"x": ("f32", (2,))}

    def load(self, device):
        self.layer = torch.nn.Linear(2, 3, device=device)

    def forward(self, batch):
        return self.layer(batch["x"])
"""
BASE = """
class Model:
    def load(self, device): pass
    def forward(self, batch): return batch["x"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return tmp_path


def load(
    folder: Path, text: str, name: str = "Model", progress: Any = lambda *_: None, **spec: Any
) -> LoadedModel:
    (folder / f"{MODULE}.py").write_text(text)
    importlib.invalidate_caches()
    sys.modules.pop(MODULE, None)
    model = ModelSpec(name="served", source=f"{MODULE}:{name}", **spec)
    return loader.load(model, msgspec.structs.replace(ENGINE, models=(model,)), CPU, progress)


def test_any_class_with_load_and_forward_will_do(folder: Path) -> None:
    steps: list[tuple[str, float]] = []
    loaded = load(folder, DUCK, "Duck", lambda *step: steps.append(step))
    outputs, errors = loaded.runner.run({"x": Tensor("f32", (4, 2), bytes(32))})
    assert (outputs["output"].shape, errors) == ((4, 3), [])
    info = loaded.info
    assert (info.name, info.source, info.device, info.kind) == ("served", f"{MODULE}:Duck", "cpu", "custom")
    assert [(i.name, i.dtype, i.shape) for i in info.inputs] == [("x", "f32", (2,))]
    assert (info.cost, info.padded, info.max_batch_tokens, info.max_batch_items) == (1, False, 100, 10)
    assert [phase for phase, _ in steps] == ["loading served", "warming up served"]
    assert [done for _, done in steps] == sorted(done for _, done in steps)


def test_budgets_come_from_the_spec_then_the_class_then_the_engine(folder: Path) -> None:
    text = BASE + "    max_batch_tokens = 7\n"
    assert load(folder, text).info.max_batch_tokens == 7
    assert load(folder, text, max_batch_tokens=5, max_batch_items=3).info.max_batch_tokens == 5
    assert load(folder, text).info.max_batch_items == 10


def test_a_budget_of_nobody_is_the_devices(folder: Path) -> None:
    spec = ModelSpec(name="m", source=f"{MODULE}:Model")
    model = load(folder, BASE).model
    engine = msgspec.structs.replace(ENGINE, max_batch_tokens=0, models=(spec,))
    for device, tokens in (("cpu", 2048), ("cuda", 16_384)):
        model.max_batch_tokens = None
        info = loader._describe(model, spec, engine, torch.device(device))
        assert info.max_batch_tokens == tokens


def test_it_is_warmed_up_with_its_example_once(folder: Path) -> None:
    text = BASE + "    runs = []\n    def example(self): return {'x': [1.0, 2.0]}\n"
    text = text.replace("return batch", "self.runs.append(batch['x'].shape); return batch")
    loaded = load(folder, text)
    assert loaded.model.runs == [torch.Size([1, 2])]  # type: ignore[attr-defined]
    assert loaded.info.output_tensors == (InputInfo("output", "f32", (2,)),)
    assert load(folder, BASE).info.output_tensors == ()


def test_its_own_example_must_have_a_finite_answer(folder: Path) -> None:
    text = BASE + "    def example(self): return {'x': [1.0, float('nan')]}\n"
    with pytest.raises(ModelFailed, match="model 'served' answers its own example with NaN or infinity"):
        load(folder, text)


def test_an_error_in_load_or_warm_up_names_the_model_and_the_place(folder: Path) -> None:
    with pytest.raises(
        LoadRaised,
        match=rf"^model 'served' fails to load: ZeroDivisionError: division by zero \({MODULE}\.py:3\)$",
    ) as error:
        load(folder, BASE.replace("device): pass", "device): 1 / 0"))
    assert isinstance(error.value.error, ZeroDivisionError)
    with pytest.raises(LoadRaised, match=r"^model 'served' fails to load: ModuleNotFoundError: No module"):
        load(folder, "import nowhere_to_be_found")
    broken = BASE.replace('return batch["x"]', "1 / 0")
    with pytest.raises(
        ModelFailed, match=rf"^model 'served' .*: ZeroDivisionError: division by zero \({MODULE}\.py:4\)$"
    ):
        load(folder, broken + "    def example(self): return {'x': [1.0]}\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Model = 3", "'Model' is not a class of module"),
        ("", "'Model' is not a class of module"),
        ("class Model:\n    def load(self, device): ...", r"has no method forward\(\)"),
        ("class Model:\n    forward = 3\n    def load(self, device): ...", r"has no method forward\(\)"),
        ("class Model:\n    def forward(self, batch): ...", r"has no method load\(\)"),
    ],
)
def test_what_is_no_model(folder: Path, text: str, reason: str) -> None:
    with pytest.raises(ModelClassError, match=reason):
        load(folder, text)


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ("inputs = {'x': ('float32', ())}", "input 'x' has dtype 'float32'; known: bool, i8"),
        ("inputs = {'x': ('f32', (2, -1))}", r"input 'x' has shape \(2, -1\); only the first may be"),
        ("inputs = {'x': ('f32', (-2,))}", "only the first may be"),
        ("inputs = {'x': 'f32'}", r"input 'x' must be declared as \(dtype, shape of an item\)"),
        ("inputs = {'x': ('f32', 3)}", "must be declared as"),
        ("inputs = {'x': ('f32', (None,))}", "must be declared as"),
        ("inputs = {'x': ([], ())}", r"input 'x' has dtype \[\]; known: bool"),
        ("inputs = 'x'", "inputs is 'x'; it must be a dict by name"),
        ("params = ['p']", r"params is \['p'\]; it must be a dict by name"),
        ("cost = 0", "cost is 0; it must be at least 1"),
        ("cost = 'x'", "cost names 'x', which is not a declared input of any length"),
        ("inputs = {'x': ('f32', (3,))}; cost = 'x'", "not a declared input of any length"),
        ("cost = 1.5", "a declaration has the wrong type"),
        ("padded = 'yes'", "a declaration has the wrong type"),
        ("params = {'p': [1, 2]}", "a declaration has the wrong type"),
        ("params = {'p': object()}", "a declaration has the wrong type"),
        ("params = {3: 1}", "a declaration has the wrong type"),
        ("max_batch_tokens = -1", "max_batch_tokens is -1; it must be at least 1"),
        ("max_batch_items = 2.5", "a declaration has the wrong type"),
        ("def describe(self, info): info.dimensions = 'many'", "a declaration has the wrong type"),
    ],
)
def test_wrong_declarations(folder: Path, declaration: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        load(folder, f"{BASE}    {declaration}\n")
    assert f"{MODULE}:Model" in str(error.value)


@pytest.mark.parametrize(
    ("declaration", "reason"),
    [
        ("def __init__(self, size): ...", r"__init__\(\) missing 1 required positional argument: 'size'"),
        ("def load(self): ...", r"load\(\) takes 1 positional argument but 2 were given"),
        ("def warm_up(self): ...", r"warm_up\(\) takes 1 positional argument but 2 were given"),
        ("def describe(self): ...", r"describe\(\) takes 1 positional argument but 2 were given"),
    ],
)
def test_a_method_that_cannot_be_called_is_told_with_its_class(
    folder: Path, declaration: str, reason: str
) -> None:
    with pytest.raises(ModelClassError, match=rf"^{MODULE}:Model: TypeError: .*{reason} \({MODULE}\.py:2\)$"):
        load(folder, f"{BASE}    {declaration}\n")


def test_a_type_error_of_its_own_is_its_own(folder: Path) -> None:
    with pytest.raises(LoadRaised, match=r"TypeError: .* object is not callable"):
        load(folder, BASE.replace("device): pass", "device): device()"))


def test_a_forward_that_takes_no_batch_is_told_with_its_class(folder: Path) -> None:
    text = BASE.replace("self, batch", "self") + "    def example(self): return {'x': [1.0]}\n"
    with pytest.raises(ModelFailed, match=rf"forward\(\) takes 1 .* \({MODULE}\.py:2\)$"):
        load(folder, text)


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        ("{'x': 5}", r"its example is no valid request: input 'x' must be f32 \[items, 3\]; got f32 \[1\]"),
        ("{'y': [1, 2, 3]}", "its example is no valid request: model 'served' needs the input 'x'"),
        ("{'x': 'abc'}", "its example is no valid request: input 'x': strings cannot be sent as f32"),
        ("[1, 2, 3]", r"Model\.example\(\) must return a dict of one item by input name"),
    ],
)
def test_an_example_must_be_what_is_declared(folder: Path, example: str, reason: str) -> None:
    text = f"{BASE}    inputs = {{'x': ('f32', (3,))}}\n    def example(self): return "
    assert load(folder, text + "{'x': [1, 2, 3]}\n").info.output_tensors == (
        InputInfo("output", "f32", (3,)),
    )
    with pytest.raises(ConfigError, match=reason):
        load(folder, f"{text}{example}\n")


def test_it_is_warmed_up_with_rows_of_any_length_as_requests_have_them(folder: Path) -> None:
    text = BASE + "    inputs = {'x': ('i32', (-1,))}\n    def example(self): return {'x': [1, 2]}\n"
    assert load(folder, text).info.output_tensors == (InputInfo("output", "i32", (-1,)),)


TEXT = """
    inputs = {"input_ids": ("i32", (-1,))}
    cost = "input_ids"
    def tokenizer_json(self):
        from gpu_server.testing import byte_tokenizer
        return byte_tokenizer()
    def describe(self, info):
        from gpu_server.wire.documents import TextInfo
        info.text = TextInfo(digest="", max_length=4, vocab_size=10)
"""


def test_a_text_model_must_have_ids_and_a_tokenizer(folder: Path) -> None:
    assert load(folder, BASE + TEXT).info.text
    with pytest.raises(ConfigError, match="takes input_ids: i32"):
        load(folder, BASE + TEXT.replace('"i32"', '"i64"'))
    with pytest.raises(ConfigError, match="must give its tokenizer_json"):
        load(folder, BASE + TEXT.replace("byte_tokenizer()", "None"))
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be used"):
        load(folder, BASE + TEXT.replace("byte_tokenizer()", 'b"{}"'))


def test_the_version_changes_with_the_file(folder: Path) -> None:
    first = load(folder, BASE).info.version
    assert load(folder, BASE + "# longer\n").info.version != first
    assert len(first) == 12


def test_the_version_changes_with_the_settings(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {},
        {"dtype": "float16"},
        {"pooling": "cls"},
        {"max_length": 8},
        {"revision": "b"},
    ]
    versions = {
        loader.version_of(ModelSpec(name="m", source=str(tmp_path), **settings)) for settings in given
    }
    assert len(versions) == len(given)


def test_a_hub_models_version_is_that_of_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = []
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        folder = tmp_path / "snapshots" / commit
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(str(len(versions)))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, made=folder, **__: str(made))
        versions.append(loader.version_of(ModelSpec(name="m", source="org/model")))
    assert versions[0] == versions[2] != versions[1]


def test_the_default_models_version_is_the_same_by_each_of_its_names() -> None:
    names = ("", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")
    assert len({loader.version_of(ModelSpec(name="m", source=name)) for name in names}) == 1


@pytest.mark.parametrize("parent", ["snapshots", "models"])
def test_a_named_folders_version_is_that_of_its_files_whatever_it_is_called(
    tmp_path: Path, parent: str
) -> None:
    weights = tmp_path / parent / "latest" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    versions: list[str] = []
    for data in (b"a", b"bb"):
        weights.write_bytes(data)
        versions.append(loader.version_of(ModelSpec(name="m", source=str(weights.parent))))
    assert versions[0] != versions[1]
