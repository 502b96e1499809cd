from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gpu_server.errors import ConfigError, TorchGuardError
from web import guard

STUB = "guarded_stub"
FRAMEWORKS = guard.FORBIDDEN


@pytest.fixture(autouse=True)
def _stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that may be guarded, so that no real framework is touched; the guard is off again afterwards."""
    (tmp_path / STUB).mkdir()
    (tmp_path / STUB / "__init__.py").touch()
    (tmp_path / STUB / "part.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(guard, "FORBIDDEN", (STUB,))
    importlib.invalidate_caches()
    yield
    guard.remove()
    for name in (STUB, f"{STUB}.part"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [STUB, f"{STUB}.part"])
def test_error_refuses_the_import_and_says_how_to_switch_it_off(name: str) -> None:
    guard.install("error")
    with pytest.raises(ImportError, match="GPU_SERVER_WEB_TORCH_GUARD=off") as caught:
        importlib.import_module(name)
    assert isinstance(caught.value, TorchGuardError)
    assert caught.value.name == STUB
    assert "\n" not in str(caught.value)


def test_error_refuses_a_probe() -> None:
    guard.install("error")
    with pytest.raises(TorchGuardError):
        importlib.util.find_spec(STUB)


def test_warn_logs_once_and_lets_it_through(caplog: pytest.LogCaptureFixture) -> None:
    guard.install("warn")
    with caplog.at_level(logging.WARNING):
        importlib.import_module(f"{STUB}.part")
    assert [STUB in record.getMessage() for record in caplog.records] == [True]


def test_what_is_imported_already_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, STUB, ModuleType(STUB))
    with pytest.raises(TorchGuardError, match="already imported"):
        guard.install("error")


def test_installing_again_replaces_and_off_removes() -> None:
    guard.install("error")
    guard.install("error")
    assert sum(isinstance(finder, guard.Guard) for finder in sys.meta_path) == 1
    assert isinstance(sys.meta_path[0], guard.Guard)
    guard.install("off")
    assert importlib.import_module(STUB)


def test_an_unknown_mode_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="maybe"):
        guard.install("maybe")


def test_other_packages_are_left_alone() -> None:
    guard.install("error")
    assert importlib.util.find_spec("json") is not None


def test_the_frameworks_are_named() -> None:
    assert {"torch", "transformers", "tensorflow", "jax", "cupy"} <= set(FRAMEWORKS)
