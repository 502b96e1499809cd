"""Which modules of sentence-transformers a folder lists in modules.json, in the orders that can be served. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpu_server.errors import ConfigError, ModelFolderMissing

Json = TypeVar("Json", dict[str, Any], list[Any])

_ORDERS = (
    "Transformer, Pooling, any Dense and perhaps Normalize; Transformer, SpladePooling; or Transformer alone"
)
_KNOWN = frozenset(
    {"Transformer", "MLMTransformer", "Pooling", "Dense", "Dropout", "Normalize", "SpladePooling"}
)
_VECTOR = "sentence_embedding"


@dataclass(frozen=True)
class Modules:
    """The folder of each module that is there; all but `transformer` are None or empty in a plain Transformers folder."""

    transformer: Path
    pooling: Path | None = None
    dense: tuple[Path, ...] = ()
    normalize: bool = False
    splade: Path | None = None


def read(folder: Path) -> Modules:
    """Read `folder/modules.json`, if there is one. Raises ConfigError on a module or an order that cannot be served."""
    path = folder / "modules.json"
    if not path.is_file():
        return Modules(folder)
    kinds = [(_kind(path, entry), folder / entry["path"]) for entry in parse(path, list)]
    # What Dropout drops is dropped in training only; it takes the vector of what comes before it.
    kinds = kinds[:2] + [(kind, place) for kind, place in kinds[2:] if kind != "Dropout"]
    match [kind for kind, _ in kinds]:
        case []:
            return Modules(folder)
        case ["Transformer"]:
            return Modules(kinds[0][1])
        case ["Transformer" | "MLMTransformer", "SpladePooling"]:
            return Modules(kinds[0][1], splade=kinds[1][1])
        case ["Transformer", "Pooling", *after]:
            normalize = after[-1:] == ["Normalize"]
            dense = kinds[2 : len(kinds) - normalize]
            if normalize:
                _check_normalizes_vectors(kinds[-1][1] / "config.json")
            if all(kind == "Dense" for kind, _ in dense):
                return Modules(kinds[0][1], kinds[1][1], tuple(place for _, place in dense), normalize)
    raise ConfigError(f"{path}: must list {_ORDERS}")


def read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises ModelFolderMissing if it is `required`, ConfigError."""
    if required and not path.is_file():
        raise ModelFolderMissing(f"{path} is missing")
    return parse(path, dict) if path.is_file() else {}


def parse(path: Path, kind: type[Json]) -> Json:
    """A JSON file that holds a `kind`; raises ConfigError."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{path} must hold a JSON {'object' if kind is dict else 'array'}")
    return value


def whole(path: Path, settings: dict[str, Any], key: str) -> int:
    """A whole number out of the settings in `path`, 0 if they have none. Raises ConfigError."""
    value = settings.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ConfigError(f"{path}: {key} must be a whole number, not {value!r}")
    return int(value)


def mapping(path: Path, settings: dict[str, Any], key: str) -> dict[str, Any]:
    """An object out of the settings in `path`, empty if they have none. Raises ConfigError."""
    value = settings.get(key)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} must be an object, not {value!r}")
    return value or {}


def _check_normalizes_vectors(path: Path) -> None:
    config = read_json(path)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, _VECTOR):
            raise ConfigError(f"{path}: {key} must be {_VECTOR}, not {config[key]!r}")


def _kind(path: Path, entry: Any) -> str:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("type", "path")):
        raise ConfigError(f"{path}: each module must have a type and a path")
    name: str = entry["type"]
    package, _, kind = name.rpartition(".")
    if package.split(".")[0] != "sentence_transformers" or kind not in _KNOWN:
        raise ConfigError(f"{path}: module {name} is not supported")
    return kind
