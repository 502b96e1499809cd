"""No module turns data into code: no pickle in any disguise, no eval, no unsafe loader."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for top in ("gpu_server", "web") for path in sorted((ROOT / top).rglob("*.py"))]
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile"}
METHODS = {"recv_pyobj", "send_pyobj", "recv_serialized", "unsafe_load", "full_load", "load_module"}


def findings(source: str) -> list[str]:
    return [found for node in ast.walk(ast.parse(source)) for found in _in_node(node)]


def _in_node(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (a.name for a in names if a.name.split(".")[0] in MODULES)
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
            yield module
        case ast.Name(id=name, ctx=ast.Load()) if name in BUILTINS:
            yield name
        case ast.Attribute(value=ast.Name(id="builtins"), attr=name) if name in BUILTINS:
            yield f"builtins.{name}"
        case ast.Attribute(attr=name) if name in METHODS:
            yield name
        case ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "load_all"):
            yield "yaml.load"
        case ast.ImportFrom(module="yaml" | "torch", names=names) if any(a.name == "load" for a in names):
            yield "load by its bare name"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=keywords):
            if not any(k.arg == "weights_only" and _is(k.value, True) for k in keywords):
                yield "torch.load without weights_only=True"
        case ast.keyword(arg="allow_pickle", value=value) if not _is(value, False):
            yield "allow_pickle"
        case ast.keyword(arg="trust_remote_code", value=value) if not _is(value, False):
            yield "trust_remote_code"


def _is(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_turns_no_data_into_code(path: Path) -> None:
    assert findings(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as json",
        "def f():\n    from marshal import loads",
        "import os, shelve",
        "eval('1')",
        "run = exec",
        "import builtins; builtins.eval('1')",
        "yaml.load(f)",
        "from yaml import load",
        "socket.recv_pyobj()",
        "socket.send_pyobj(x)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)",
        "from torch import load",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
    ],
)
def test_every_forbidden_form_is_found(source: str) -> None:
    assert len(findings(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)", "re.compile('x')"],
)
def test_harmless_forms_are_not(source: str) -> None:
    assert findings(source) == []
