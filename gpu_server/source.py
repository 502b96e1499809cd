"""What a model argument names, and whether it can be there: checked without importing it or torch."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections import Counter
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Literal

from gpu_server import model_folder
from gpu_server.errors import ConfigError, MissingDependency, ModelClassError, ModelFolderMissing

Kind = Literal["default", "class", "folder", "hub"]

DEFAULT_NAME = "sentence-transformers/all-MiniLM-L6-v2"
_SHORT_NAME = DEFAULT_NAME.rpartition("/")[2]
INSTALL_SERVER = "install gpu-server with its server extra: pip install '.[server]' in the clone"
_PACKAGES = ("torch", "tokenizers")
_TEXT_PACKAGES = ("transformers",)
_CLASS = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_HUB = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def kind_of(source: str) -> Kind:
    """Whether a source is the default model, `module:Class`, a folder or a hub id. Raises ConfigError if it is none."""
    if not source:
        return "default"
    if _CLASS.match(source):
        return "class"
    if source.endswith(".py") and not Path(source).is_dir():
        raise ModelClassError(f"{source!r} is a file, not a class; did you mean {Path(source).stem}:Class?")
    if source.startswith(("/", "./", "../", "~")) or Path(source).is_dir():
        return "folder"
    if ":" in source:
        raise ModelClassError(f"{source!r} is not module:Class (one colon, Python names on both sides)")
    if _HUB.match(source):
        return "hub"
    raise ConfigError(f"{source!r} is neither module:Class, a folder, nor a hub id")


def is_default(source: str) -> bool:
    """Whether a source is the default model: none, or its name, whole or short, which no folder here has."""
    return not source or (source in (DEFAULT_NAME, _SHORT_NAME) and not Path(source).is_dir())


def whole_name(source: str) -> str:
    """The hub id of the default model where a source is that model; any other source as it is."""
    return DEFAULT_NAME if is_default(source) else source


def folder_of(source: str) -> Path:
    """The path of a folder as it was named. Raises ModelFolderMissing on the home of a user who does not exist."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise ModelFolderMissing(f"model folder {source} does not exist: there is no such user") from None


def name_of(source: str) -> str:
    """The name clients ask for when none is configured: hub id, folder name, or the class name."""
    if is_default(source):
        return DEFAULT_NAME
    kind = kind_of(source)
    if kind == "class":
        return source.partition(":")[2]
    return folder_of(source).resolve().name if kind == "folder" else source


def check(source: str) -> None:
    """Refuse what cannot work before any process is started. Raises a ConfigError with one clear line."""
    check_packages(source)
    kind = kind_of(source)
    if kind == "class":
        _check_class(source)
    elif kind == "folder":
        model_folder.check(folder_of(source))


def check_packages(source: str) -> None:
    """Refuse to serve where a package of the `server` extra is missing. Raises MissingDependency with what to install."""
    for package in _PACKAGES if kind_of(source) == "class" else (*_PACKAGES, *_TEXT_PACKAGES):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(f"{package} is not installed; {INSTALL_SERVER}")


def _check_class(source: str) -> None:
    module, _, name = source.partition(":")
    try:
        spec = _find(module)
    except ModelClassError:
        if not module.endswith(".py"):
            raise
        meant = f"{module.removesuffix('.py')}:{name}"
        raise ModelClassError(f"{source!r} names a file, not a module; did you mean {meant}?") from None
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
    if not open_ended and bound[name] == 1:
        for method in _surely_missing(tree, name, bound):
            raise ModelClassError(f"{source}: class {name!r} ({spec.origin}) has no method {method}()")


def _find(module: str) -> ModuleSpec:
    """The spec of a module, found without importing its parents as `importlib.util.find_spec` would."""
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for i in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), path)
        if spec is None:
            where = _searched() if i == 0 else f": package {'.'.join(parts[:i])!r} has none"
            raise ModelClassError(f"module {'.'.join(parts[: i + 1])!r} was not found{where}")
        path = list(spec.submodule_search_locations or [])
        if i < len(parts) - 1 and not path:
            raise ModelClassError(f"module {'.'.join(parts[: i + 1])!r} is not a package")
    assert spec is not None
    return spec


def _searched() -> str:
    """Names the folder: a model that `load` asks for is looked for by the daemon, which may have been started elsewhere."""
    how = "start it in the module's folder, or with that folder in PYTHONPATH"
    return f" in {Path.cwd()}, where gpu-server was started, or among the installed packages: {how}"


def _surely_missing(tree: ast.Module, name: str, bound: Counter[str]) -> list[str]:
    """Which of `load` and `forward` the class has not; none where a base, a decorator or an assignment may add them."""
    found = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    if not found or found[0].decorator_list or found[0].keywords:
        return []
    plain = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "gpu_server"
        for alias in node.names
        if alias.name == "Model" and bound[alias.asname or alias.name] == 1
    }
    if any(not isinstance(base, ast.Name) or base.id not in plain for base in found[0].bases):
        return []
    outside = {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    called = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    if called & {"setattr", "exec", "locals", "vars"}:
        return []
    own = set(_names(found[0])[0]) | {
        n.name for n in ast.walk(found[0]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return [method for method in ("load", "forward") if method not in own | outside]


def _names(tree: ast.AST) -> tuple[Counter[str], list[str], bool]:
    """Names bound in a module or class, its classes, and whether more may come (star import, `__getattr__`)."""
    bound: Counter[str] = Counter()
    classes: list[str] = []
    open_ended = False
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            classes.append(node.name)
            bound[node.name] += 1
        elif isinstance(node, ast.FunctionDef):
            open_ended |= node.name == "__getattr__"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                open_ended |= alias.name == "*"
                bound[(alias.asname or alias.name).split(".")[0]] += 1
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound[node.id] += 1
    return bound, classes, open_ended


def search_current_folder() -> None:
    """Make modules in the working folder importable, as `python -m` and Gunicorn do."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
