"""What a model argument names, and whether it can be there: checked without importing it or torch."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Literal

from gpu_server.errors import ConfigError, MissingDependency, ModelClassError, ModelFolderMissing

Kind = Literal["default", "class", "folder", "hub"]

DEFAULT_NAME = "sentence-transformers/all-MiniLM-L6-v2"
_CLASS = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_HUB = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def kind_of(source: str) -> Kind:
    """Whether a source is the default model, `module:Class`, a folder or a hub id. Raises ConfigError if it is none."""
    if not source:
        return "default"
    if _CLASS.match(source):
        return "class"
    if source.startswith(("/", "./", "../", "~")) or Path(source).is_dir():
        return "folder"
    if ":" in source:
        raise ModelClassError(f"{source!r} is not module:Class (one colon, Python names on both sides)")
    if _HUB.match(source):
        return "hub"
    raise ConfigError(f"{source!r} is neither module:Class, a folder, nor a hub id")


def name_of(source: str) -> str:
    """The name clients ask for when none is configured: hub id, folder name, or the class name."""
    kind = kind_of(source)
    if kind == "default":
        return DEFAULT_NAME
    if kind == "class":
        return source.partition(":")[2]
    return Path(source).expanduser().resolve().name if kind == "folder" else source


def check(source: str) -> None:
    """Refuse what cannot work before any process is started. Raises a ConfigError with one clear line."""
    for package, needs in (
        ("torch", "gpu-server-daemon[server]"),
        ("transformers", "gpu-server-daemon[server]"),
    ):
        kind = kind_of(source)
        if (package == "torch" or kind != "class") and importlib.util.find_spec(package) is None:
            raise MissingDependency(f"{package} is not installed: pip install '{needs}'")
    if kind == "class":
        _check_class(source)
    elif kind == "folder":
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ModelFolderMissing(f"model folder {folder} does not exist")
        if not (folder / "config.json").is_file():
            raise ModelFolderMissing(f"model folder {folder} has no config.json")


def _check_class(source: str) -> None:
    module, _, name = source.partition(":")
    spec = _find(module)
    if spec.origin is None or not spec.origin.endswith(".py"):
        return
    try:
        tree = ast.parse(Path(spec.origin).read_bytes(), spec.origin)
    except SyntaxError as error:
        raise ModelClassError(f"{spec.origin}:{error.lineno}: {error.msg}") from None
    bound, classes, open_ended = _names(tree)
    if name not in bound and not open_ended:
        found = f"; it defines: {', '.join(classes)}" if classes else "; it defines no class"
        raise ModelClassError(f"module {module!r} ({spec.origin}) has no class {name!r}{found}")


def _find(module: str) -> ModuleSpec:
    """The spec of a module, found without importing its parents as `importlib.util.find_spec` would."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for i in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), path)
        if spec is None:
            where = (
                "the current folder is searched too"
                if i == 0
                else f"package {'.'.join(parts[:i])!r} has none"
            )
            raise ModelClassError(f"module {'.'.join(parts[: i + 1])!r} was not found ({where})")
        path = list(spec.submodule_search_locations or [])
        if i < len(parts) - 1 and not path:
            raise ModelClassError(f"module {'.'.join(parts[: i + 1])!r} is not a package")
    assert spec is not None
    return spec


def _names(tree: ast.Module) -> tuple[set[str], list[str], bool]:
    """Names a module binds at its top level, its classes, and whether more may come (star import, `__getattr__`)."""
    bound: set[str] = set()
    classes: list[str] = []
    open_ended = False
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            classes.append(node.name)
            bound.add(node.name)
        elif isinstance(node, ast.FunctionDef):
            open_ended |= node.name == "__getattr__"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                open_ended |= alias.name == "*"
                bound.add((alias.asname or alias.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    return bound, classes, open_ended


def search_current_folder() -> None:
    """Make modules in the working folder importable, as `python -m` and Gunicorn do."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
