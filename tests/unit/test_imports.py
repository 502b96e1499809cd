"""Who may import what: by source for every module, and by sys.modules for those that others rely on to be light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
GPU = frozenset({"torch", "transformers", "sentence_transformers", "triton", "safetensors", "accelerate"})
WEB = frozenset({"flask", "werkzeug", "gunicorn"})
# Any module may import these.
COMMON = frozenset({"gpu_server._version", "gpu_server.__version__", "gpu_server.errors"})


class Rule(NamedTuple):
    """Project modules that a package may import besides itself and COMMON, and packages that it must not."""

    may: frozenset[str]
    never: frozenset[str]


def rule(*may: str, never: frozenset[str]) -> Rule:
    return Rule(frozenset(f"gpu_server.{name}" for name in may), never)


CLIENT_SIDE = rule(
    "wire",
    "config",
    "endpoint",
    "tokenizing",
    "calls",
    "text_calls",
    "scores",
    "connection",
    "per_process",
    "curve",
    "handshakes",
    "pending",
    "tries",
    "dealer",
    "io_thread",
    "deadline",
    "sending",
    "sizes",
    "client",
    "aio",
    "testing",
    never=GPU | WEB,
)
RULES = {
    # Public names are loaded on first use; what the package imports at once is checked by sys.modules below.
    "gpu_server": rule("client", "aio", "models.base", "text_calls", never=GPU | WEB | {"zmq"}),
    "gpu_server.__main__": rule("cli", never=GPU | WEB | {"zmq"}),
    "gpu_server._version": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.errors": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.logs": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.wire": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.config": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.variables": rule("config", never=GPU | WEB | {"zmq"}),
    "gpu_server.endpoint": rule("config", never=GPU | WEB | {"zmq"}),
    "gpu_server.specs": rule("config", "source", "wire", never=GPU | WEB | {"zmq"}),
    "gpu_server.model_folder": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.source": rule("config", "model_folder", never=GPU | WEB | {"zmq"}),
    "gpu_server.tokenizing": rule("wire", "pairs", never=GPU | WEB | {"zmq"}),
    "gpu_server.pairs": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.multipart": rule("wire", never=GPU | WEB),
    "gpu_server.channel": rule("wire", "shared_frames", never=GPU | WEB | {"zmq"}),
    "gpu_server.shared_frames": rule("wire", never=GPU | WEB | {"zmq"}),
    "gpu_server.heap": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.deadline": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.sizes": rule("wire", never=GPU | WEB | {"zmq"}),
    "gpu_server.scores": rule("wire", never=GPU | WEB | {"zmq"}),
    "gpu_server.curve": rule("config", "endpoint", never=GPU | WEB),
    "gpu_server.handshakes": CLIENT_SIDE,
    "gpu_server.pending": CLIENT_SIDE,
    "gpu_server.tries": CLIENT_SIDE,
    "gpu_server.dealer": rule(never=GPU | WEB),
    "gpu_server.io_thread": rule(never=GPU | WEB),
    "gpu_server.calls": CLIENT_SIDE,
    "gpu_server.text_calls": CLIENT_SIDE,
    "gpu_server.connection": CLIENT_SIDE,
    "gpu_server.per_process": CLIENT_SIDE,
    "gpu_server.sending": CLIENT_SIDE,
    "gpu_server.client": CLIENT_SIDE,
    "gpu_server.aio": CLIENT_SIDE,
    "gpu_server.testing": CLIENT_SIDE,
    "gpu_server.daemon": rule(
        "channel", "wire", "config", "curve", "endpoint", "heap", "logs", "multipart", "shared_frames", "source",
        "specs", "tokenizing", never=GPU | WEB,
    ),
    "gpu_server.engine": rule(
        "channel", "wire", "config", "endpoint", "logs", "shared_frames", "source", "specs", "tokenizing", "models",
        never=WEB,
    ),
    "gpu_server.models": rule("wire", "config", "source", "tokenizing", never=WEB | {"zmq"}),
    "gpu_server.bench": rule(never=GPU | WEB | {"zmq"}),
    "gpu_server.autoscale": rule("wire", "client", never=GPU | WEB),
    "gpu_server.checks": rule(
        "wire", "config", "curve", "endpoint", "source", "specs", "variables", "client", "daemon", never=GPU | WEB
    ),
    # Run as processes of their own, so that what they import stays out of the others.
    "gpu_server.probes": Rule(
        frozenset({
            "gpu_server.wire", "gpu_server.engine", "gpu_server.models", "gpu_server.variables", "web.guard", "web.settings",
        }),
        never=frozenset({"zmq"}),
    ),
    "gpu_server.cli": rule(
        "autoscale", "bench", "checks",
        "wire", "config", "curve", "endpoint", "logs", "source", "tokenizing", "variables", "calls", "client", "daemon",
        "testing", never=GPU | WEB,
    ),
    "web": rule(
        "wire", "config", "logs", "tokenizing", "variables", "calls", "connection", "deadline", "scores", "sizes",
        "text_calls", "client", never=GPU | {"zmq"},
    ),
}  # fmt: skip
FILES = [path for top in ("gpu_server", "web") for path in sorted((ROOT / top).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def owner(module: str) -> str:
    """The row of RULES for a module; a top-level module of gpu_server has its own, so that none goes unchecked."""
    return ".".join(module.split(".")[: 1 if module.split(".")[0] == "web" else 2])


def imported(tree: ast.Module) -> Iterator[str]:
    """Every name imported at any depth of a module, as a dotted path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)


def within(name: str, packages: frozenset[str] | set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def breaches(module: str, source: str) -> list[str]:
    row = owner(module)
    may, never = RULES[row]
    own = {row} if row != "gpu_server" else set()
    names = list(imported(ast.parse(source)))
    project = [n for n in names if within(n, {"gpu_server", "web"}) or n.startswith(".")]
    return [n for n in project if not within(n, may | COMMON | own)] + [n for n in names if within(n, never)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_module_imports_only_what_its_package_may(path: Path) -> None:
    module = module_name(path)
    assert owner(module) in RULES, f"{module} has no row in RULES: decide what it may import"
    assert breaches(module, path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gpu_server.wire.tensor", "import zmq.green"),
        ("gpu_server.wire.tensor", "from gpu_server.config import Config"),
        ("gpu_server.wire.tensor", "from gpu_server import config"),
        ("gpu_server.wire.tensor", "from . import limits"),
        ("gpu_server.daemon.router", "def f():\n    from torch import nn"),
        ("gpu_server.daemon.router", "if TYPE_CHECKING:\n    from gpu_server.engine.process import main"),
        ("gpu_server.daemon.router", "from gpu_server import models"),
        ("gpu_server.engine.process", "from flask import Flask"),
        ("web.routes.tei", "import torch as t"),
        ("web.routes.tei", "import gpu_server.daemon.router"),
        ("web.app", "try:\n    import transformers\nexcept ImportError:\n    pass"),
    ],
)
def test_a_breach_is_found_wherever_it_hides(module: str, source: str) -> None:
    assert len(breaches(module, source)) == 1


def test_allowed_imports_are_no_breach() -> None:
    assert (
        breaches("gpu_server.wire.tensor", "import json, numpy\nfrom gpu_server.errors import ProtocolError")
        == []
    )
    assert (
        breaches(
            "web.routes.tei", "from flask import g\nfrom gpu_server.client import Client\nimport web.app"
        )
        == []
    )


def loaded_by(module: str) -> set[str]:
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("gpu_server", GPU | WEB | {"zmq", "numpy", "msgspec", "gpu_server.client"}),
        ("gpu_server.wire", GPU | WEB | {"zmq"}),
        ("gpu_server.config", GPU | WEB | {"zmq", "numpy"}),
        ("gpu_server.models.base", GPU | WEB | {"zmq"}),
        ("gpu_server.client", GPU | WEB | {"tokenizers"}),
        ("gpu_server.daemon", GPU | WEB | {"gpu_server.engine", "gpu_server.models"}),
        ("web", GPU | {"zmq"}),
    ],
)
def test_import_leaves_these_out(module: str, absent: set[str]) -> None:
    loaded = loaded_by(module)
    assert module in loaded
    assert loaded & absent == set()
