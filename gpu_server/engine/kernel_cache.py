"""Where Triton and torch keep the kernels that they compile, so that a second start is quick."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_SETTINGS = {"triton": "TRITON_CACHE_DIR", "inductor": "TORCHINDUCTOR_CACHE_DIR"}


def keep() -> None:
    """Use the user's cache folder, unless the environment names another: it is code, so nobody else may write there.

    Call it before anything is compiled: torch settles on a folder under /tmp when it first looks for one.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "gpu-server"
        for name, setting in _SETTINGS.items():
            if not os.environ.get(setting):
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name).chmod(0o700)
                os.environ[setting] = str(folder / name)
    except (OSError, RuntimeError) as error:
        # RuntimeError: this user has no home.
        log.warning("compiled kernels are not kept", extra={"reason": str(error)})
