"""Imports a WSGI app as a worker does, with the torch guard on, and tells which imports reached for a GPU framework."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from web.guard import Guard


class Recorder(Guard):
    """Notes who asked for a forbidden package first, and refuses it as the guard does."""

    def __init__(self) -> None:
        super().__init__("error")
        self.chains: dict[str, list[str]] = {}

    def refuse(self, package: str, what: str) -> None:
        """Keep the imports that led here, outermost first."""
        self.chains.setdefault(package, _chain(traceback.extract_stack()))
        super().refuse(package, what)


def main() -> None:
    """Answer the chains, and the error where the app could not be imported."""
    uri = json.loads(sys.stdin.read())["app"]
    sys.path.insert(0, str(Path.cwd()))
    from gunicorn.util import import_app

    recorder = Recorder()
    sys.meta_path.insert(0, recorder)
    error = ""
    try:
        import_app(uri)
    except Exception as failed:  # noqa: BLE001 - the boundary to user code
        error = f"{type(failed).__name__}: {failed}".partition("\n")[0]
    print(json.dumps({"error": error, "chains": recorder.chains}))  # noqa: T201


def _chain(stack: traceback.StackSummary) -> list[str]:
    """file:line and code of each frame of the app's, those that only carry out an import left out."""
    machinery = {
        __file__,
        sys.modules["web.guard"].__file__,
        sys.modules["gunicorn.util"].__file__,
        importlib.__file__,
    }
    theirs = [f for f in stack if f.filename not in machinery and not f.filename.startswith("<frozen")]
    return [f"{_short(frame.filename)}:{frame.lineno}: {(frame.line or '').strip()}" for frame in theirs]


def _short(filename: str) -> str:
    _, found, package = filename.rpartition("/site-packages/")
    if found:
        return package
    here = Path.cwd()
    path = Path(filename)
    return str(path.relative_to(here)) if path.is_relative_to(here) else filename


if __name__ == "__main__":
    main()
