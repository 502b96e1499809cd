"""An error out of a user's model in one line: its kind, its words and where in their code it arose."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from pathlib import Path
from typing import NamedTuple

from gpu_server.errors import EngineStartFailed

_OURS = f"{Path(__file__).parents[1]}/"
_LIBRARY = f"{sysconfig.get_path('stdlib')}/"


class LoadRaised(EngineStartFailed):
    """What a model's code raised while it was loaded or warmed up: the message names the model, `error` is the original."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"model {name!r} fails to load: {describe(error)}")
        self.error = error


class Blame(NamedTuple):
    """An error without its traceback. words: its first line, which may quote a request. place: as `place` gives it."""

    kind: str
    words: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}{self.place}"


def of(error: BaseException, model: type | None = None) -> Blame:
    """What is to blame for an error; `model` is where to look if none of its lines ran."""
    return Blame(type(error).__name__, str(error).partition("\n")[0], place(error, model))


def describe(error: BaseException, model: type | None = None) -> str:
    """`KeyError: 'x' (classifier.py:12)`; `model` as for `of`."""
    return str(of(error, model))


def place(error: BaseException, model: type | None = None) -> str:
    """` (file:line)` of the innermost frame that is the user's, not an installed package's; "" if there is no frame."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    theirs = [frame for frame in frames if not frame[0].startswith(_OURS)]
    own = [frame for frame in theirs if not _installed(frame[0])]
    found = (own or theirs)[-1:] or (_definition(model) if model else []) or frames[-1:]
    return "".join(f" ({Path(filename).name}:{line})" for filename, line in found)


def _installed(filename: str) -> bool:
    parts = Path(filename).parts
    return filename.startswith(("<", _LIBRARY)) or "site-packages" in parts or "dist-packages" in parts


def _definition(model: type) -> list[tuple[str, int | None]]:
    try:
        return [(inspect.getfile(model), inspect.getsourcelines(model)[1])]
    except (OSError, TypeError):
        return []
