"""The wheel holds what it should, and its base install is a small client without torch or Flask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_daemon import ROOT

from gpu_server.source import INSTALL_SERVER

pytestmark = pytest.mark.slow

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
LIMIT_BYTES = 60_000_000


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command away from the checkout, so that only what is installed can be imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "GPU_SERVER_", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gp-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    """The wheel, built from a copy, so that the checkout stays as it is."""
    copy = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("gpu_server", "web"):
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    built = run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, copy, cwd=folder)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(folder: Path, wheel: Path) -> Path:
    """The interpreter of an environment that holds the wheel and its base dependencies, nothing else."""
    venv.create(folder / "env", with_pip=False, symlinks=True)
    made = folder / "env" / "bin" / "python"
    installed = run(*PIP, "--python", made, "install", "--no-compile", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return made


def test_the_wheel_holds_two_packages_with_their_types_and_units(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"gpu_server", "web"}
    assert len(top) == 3
    expected = {"gpu_server/py.typed", "web/py.typed", "gpu_server/units/gpu-server@.service"}
    assert expected <= set(names)
    shipped = {name for name in names if name.endswith(".py")}
    assert shipped == {
        str(p.relative_to(ROOT)) for d in ("gpu_server", "web") for p in (ROOT / d).rglob("*.py")
    }


def test_the_base_install_is_small_and_has_no_framework(python: Path, folder: Path) -> None:
    present = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    probe = run(
        python, "-I", "-c", present, "torch", "flask", "transformers", "tokenizers", "zmq", cwd=folder
    )
    assert probe.stdout.strip() == "['zmq']", probe.stderr
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    sizes = {
        entry.name: sum(f.stat().st_size for f in [entry, *entry.rglob("*")]) for entry in site.iterdir()
    }
    assert "msgspec" in sizes
    assert sum(size for name, size in sizes.items() if not name.startswith("numpy")) < LIMIT_BYTES


def test_the_base_install_imports_the_client(python: Path, folder: Path) -> None:
    code = "import sys, gpu_server; gpu_server.Client; print(gpu_server.__file__, 'flask' in sys.modules)"
    ran = run(python, "-W", "error", "-c", code, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(folder / "env"))
    assert ran.stdout.endswith("False\n")


def test_the_base_install_cannot_serve_and_says_what_to_install(python: Path, folder: Path) -> None:
    for arguments in ([], ["module:Class"]):
        asked = run(python.with_name("gpu-server"), "start", *arguments, cwd=folder)
        (line,) = asked.stderr.splitlines()
        assert (asked.returncode, line) == (71, f"gpu-server: torch is not installed; {INSTALL_SERVER}")


def test_the_base_install_has_the_command(python: Path, folder: Path) -> None:
    command = python.with_name("gpu-server")
    shown = run(command, "--help", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert {"start", "status", "stop"} <= set(shown.stdout.split())
    endpoint = f"ipc://{folder}/none"
    asked = run(command, "status", "--endpoint", endpoint, cwd=folder)
    assert asked.returncode == 69
    assert asked.stdout == ""
    (line,) = asked.stderr.splitlines()
    assert endpoint in line
    assert "gpu-server start" in line
