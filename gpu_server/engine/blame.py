"""An error out of a user's model in one line: its kind, its words and where in their code it arose."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from pathlib import Path

_OURS = f"{Path(__file__).parents[1]}/"
_LIBRARY = f"{sysconfig.get_path('stdlib')}/"


def describe(error: BaseException, model: type | None = None) -> str:
    """`KeyError: 'x' (classifier.py:12)`; `model` is where to look if none of its lines ran."""
    return f"{type(error).__name__}: {error}".partition("\n")[0] + place(error, model)


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
