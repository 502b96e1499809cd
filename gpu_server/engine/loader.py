"""From a model spec to a loaded, warmed model: finds the class, loads it on the device, checks what it declares."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from gpu_server import source
from gpu_server.engine import blame, verify
from gpu_server.engine.memory import Stages
from gpu_server.engine.runner import Runner
from gpu_server.errors import ConfigError, GPUServerError, ModelClassError
from gpu_server.models.base import Model
from gpu_server.models.text import source as text_source
from gpu_server.tokenizing import TextTokenizer
from gpu_server.wire import Tensors
from gpu_server.wire.documents import InputInfo, ModelInfo
from gpu_server.wire.events import EngineSpec, ModelSpec
from gpu_server.wire.monitoring import ModelMemory
from gpu_server.wire.tensor import ITEMSIZE

Progress = Callable[[str, float], None]
T = TypeVar("T")

# A CPU runs no faster in larger batches, which only keep others waiting for seconds.
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 16_384

_OPTIONAL = ("collate", "split", "example", "warm_up", "describe", "tokenizer_json")
_ATTRIBUTES = (
    "inputs", "params", "cost", "padded", "check_finite", "max_batch_tokens", "max_batch_items",
)  # fmt: skip


class LoadedModel:
    """A model that can run, with its facts and the memory that loading and warming it up took."""

    def __init__(
        self, model: Model, runner: Runner, info: ModelInfo, memory: ModelMemory | None = None
    ) -> None:
        self.model = model
        self.runner = runner
        self.info = info
        self.memory = memory or ModelMemory(name=info.name)


def load(spec: ModelSpec, engine: EngineSpec, device: torch.device, progress: Progress) -> LoadedModel:
    """Load and warm one model; `progress(phase, done)` gets a part of 1.

    Raises ConfigError and other errors of this package, and LoadRaised for any other that the model raises.
    """
    try:
        return _load(spec, engine, device, progress)
    except GPUServerError:
        raise
    except Exception as error:
        raise blame.LoadRaised(spec.name, error) from error


def _load(spec: ModelSpec, engine: EngineSpec, device: torch.device, progress: Progress) -> LoadedModel:
    progress(f"loading {spec.name}", 0.0)
    model = _make(spec, engine)
    stages = Stages(device)
    _call(spec, model, model.load, device)
    stages.loaded()
    info = _describe(model, spec, engine, device)
    model.max_batch_tokens, model.max_batch_items = info.max_batch_tokens, info.max_batch_items
    runner = Runner(model, device)
    warming = f"warming up {spec.name}"
    progress(warming, 0.6)

    seen: Tensors = {}

    def run(inputs: Mapping[str, Any]) -> None:
        seen.update(verify.run(info, runner, inputs))

    model.progress = lambda done: progress(warming, 0.6 + 0.4 * done)  # type: ignore[method-assign]
    _call(spec, model, model.warm_up, run)
    model.describe(info)
    info.output_tensors = tuple(InputInfo(name, t.dtype, t.shape[1:]) for name, t in seen.items())
    return LoadedModel(model, runner, info, stages.warmed_up(spec.name))


def _make(spec: ModelSpec, engine: EngineSpec) -> Model:
    if source.kind_of(spec.source) != "class":
        from gpu_server.models.text.choice import choose

        return choose(
            spec.source,
            revision=spec.revision,
            dtype=spec.dtype,
            pooling=spec.pooling,
            max_length=spec.max_length,
            packed=engine.packed,
            graphs=engine.graphs,
            compiled=engine.compiled,
            fused=engine.fused,
        )
    source.search_current_folder()
    module, _, name = spec.source.partition(":")
    made = getattr(importlib.import_module(module), name, None)
    if not inspect.isclass(made):
        raise ModelClassError(f"{spec.source}: {name!r} is not a class of module {module!r}")
    for verb in ("load", "forward"):
        if not callable(getattr(made, verb, None)):
            raise ModelClassError(f"{spec.source}: class {name!r} has no method {verb}()")
    return _complete(_call(spec, made, made))


def _call(spec: ModelSpec, model: object, function: Callable[..., T], *arguments: object) -> T:
    """What a function of the user's returns. Raises ModelClassError where it does not take these arguments."""
    try:
        return function(*arguments)
    except TypeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise
        kind = model if isinstance(model, type) else type(model)
        raise ModelClassError(f"{spec.source}: {blame.describe(error, kind)}") from None


def _complete(model: Any) -> Model:
    """Lend a class that does not inherit from `Model` the parts it left out."""
    if isinstance(model, Model):
        return model
    for name in _OPTIONAL:
        if not hasattr(model, name):
            setattr(model, name, types.MethodType(getattr(Model, name), model))
    for name in _ATTRIBUTES:
        if not hasattr(model, name):
            setattr(model, name, getattr(Model, name))
    completed: Model = model
    return completed


def _describe(model: Model, spec: ModelSpec, engine: EngineSpec, device: torch.device) -> ModelInfo:
    info = ModelInfo(
        name=spec.name,
        version=version_of(spec),
        source=spec.source or source.DEFAULT_NAME,
        device=str(device),
        inputs=tuple(_input(spec, *declared) for declared in _mapping(spec, "inputs", model.inputs).items()),
        params=_mapping(spec, "params", model.params),
        cost=model.cost,
        padded=model.padded,
        max_batch_tokens=spec.max_batch_tokens
        or model.max_batch_tokens
        or engine.max_batch_tokens
        or (CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS),
        max_batch_items=spec.max_batch_items or model.max_batch_items or engine.max_batch_items,
    )
    _call(spec, model, model.describe, info)
    _check_types(info)
    _check_cost(info)
    _check_text(info, model)
    return info


def _mapping(spec: ModelSpec, name: str, declared: Any) -> dict[str, Any]:
    if not isinstance(declared, Mapping):
        raise ConfigError(f"{spec.source}: {name} is {declared!r:.80}; it must be a dict by name")
    return dict(declared)


def _input(spec: ModelSpec, name: str, declared: Any) -> InputInfo:
    try:
        dtype, shape = declared
        shape = tuple(int(d) for d in shape)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{spec.source}: input {name!r} must be declared as (dtype, shape of an item)"
        ) from None
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise ConfigError(f"{spec.source}: input {name!r} has dtype {dtype!r}; known: {', '.join(ITEMSIZE)}")
    if any(d < 0 for d in shape[1:]) or (shape and shape[0] < -1):
        raise ConfigError(f"{spec.source}: input {name!r} has shape {shape}; only the first may be −1")
    return InputInfo(name, dtype, shape)


def _check_types(info: ModelInfo) -> None:
    """Refuse here what the daemon could not decode: there it would look like an engine that never gets ready."""
    try:
        msgspec.convert(msgspec.to_builtins(info), ModelInfo)
    except (msgspec.ValidationError, TypeError) as error:
        raise ConfigError(f"{info.source}: a declaration has the wrong type: {error}") from None


def _check_cost(info: ModelInfo) -> None:
    for name in ("max_batch_tokens", "max_batch_items"):
        if getattr(info, name) < 1:
            raise ConfigError(f"{info.source}: {name} is {getattr(info, name)}; it must be at least 1")
    if isinstance(info.cost, int):
        if info.cost < 1:
            raise ConfigError(f"{info.source}: cost is {info.cost}; it must be at least 1")
    elif not any(i.name == info.cost and i.shape[:1] == (-1,) for i in info.inputs):
        raise ConfigError(
            f"{info.source}: cost names {info.cost!r}, which is not a declared input of any length"
        )


def _check_text(info: ModelInfo, model: Model) -> None:
    """A text model must have what the daemon needs to tokenise for it and to check the ids."""
    if info.text is None:
        return
    ids, types = (InputInfo(name, "i32", (-1,)) for name in ("input_ids", "token_type_ids"))
    if info.inputs not in ((ids,), (ids, types)):
        raise ConfigError(
            f"{info.source}: a model with text takes input_ids: i32 (-1,), and perhaps token_type_ids: i32 (-1,)"
        )
    data = model.tokenizer_json()
    if data is None:
        raise ConfigError(f"{info.source}: a model with text must give its tokenizer_json()")
    TextTokenizer(data, info.text)


def version_of(spec: ModelSpec) -> str:
    """A short digest of what was loaded: the hub's commit, or the sizes and times of a folder's or module's files."""
    kind = source.kind_of(spec.source)
    seen = [
        source.whole_name(spec.source),
        spec.revision,
        spec.dtype,
        spec.pooling,
        str(spec.max_length),
    ]
    if kind == "class":
        path = inspect.getsourcefile(importlib.import_module(spec.source.partition(":")[0]))
        seen += _stamps([Path(path)]) if path else []
    else:
        folder = text_source.find(spec.source, spec.revision)
        # Of the hub's own snapshots only: what lies in a folder that was named may change, whatever it is called.
        snapshot = kind != "folder" and folder.parent.name == "snapshots"
        seen += [folder.name] if snapshot else _stamps(sorted(p for p in folder.rglob("*") if p.is_file()))
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:12]


def _stamps(paths: list[Path]) -> list[str]:
    return [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in paths]
