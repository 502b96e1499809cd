"""What a text model's folder must hold, looked at in milliseconds: no torch, and of the weights only their header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_server.errors import ConfigError, ModelFolderMissing

MAX_HEADER_BYTES = 100_000_000
_LFS_POINTER = b"version "


def check(folder: Path) -> None:
    """Refuse a folder that no engine could load.

    Raises ModelFolderMissing naming what is not there, ConfigError naming what cannot be read.
    """
    if not folder.is_dir():
        raise ModelFolderMissing(f"model folder {folder} does not exist")
    inner = _transformer(folder)
    if not (inner / "config.json").is_file():
        raise ModelFolderMissing(f"model folder {inner} has no config.json")
    _object(inner / "config.json")
    if not (inner / "tokenizer.json").is_file():
        raise ModelFolderMissing(
            f"{inner / 'tokenizer.json'} is missing: a text model needs a fast tokenizer's tokenizer.json"
        )
    for path in _weights(inner):
        _check_header(path)


def _transformer(folder: Path) -> Path:
    """Where the encoder is, by modules.json; one that cannot be understood is for the engine to explain."""
    path = folder / "modules.json"
    try:
        return folder / json.loads(path.read_bytes())[0]["path"] if path.is_file() else folder
    except (OSError, ValueError, LookupError, TypeError):
        return folder


def _weights(folder: Path) -> list[Path]:
    """The safetensors files; none where the weights are an old pickle. Raises ModelFolderMissing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _object(index).get("weight_map")
        found = [folder / name for name in sorted(set(listed.values()))] if isinstance(listed, dict) else []
        for path in found:
            if not path.is_file():
                raise ModelFolderMissing(f"{path} is missing, which {index.name} lists")
        return found
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin*")):
        return []
    raise ModelFolderMissing(f"model folder {folder} has no weights (model.safetensors)")


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


def _check_header(path: Path) -> None:
    """Eight bytes with the length of a JSON header, the header, and as many bytes of data as it says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            raw = file.read(length) if length <= min(size, MAX_HEADER_BYTES) else b""
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if first == _LFS_POINTER:
        raise ConfigError(f"{path} is a pointer of Git LFS, not the file: run git lfs pull")
    try:
        entries = [entry for name, entry in json.loads(raw).items() if name != "__metadata__"]
        whole = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(f"{path} is no safetensors file, or a damaged one") from None
    if size != whole:
        raise ConfigError(f"{path} has {size} bytes and should have {whole}: fetch it again")
