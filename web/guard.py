"""The torch guard: keeps GPU frameworks out of web workers, where a fork breaks CUDA and every worker pays for a copy."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from gpu_server.errors import ConfigError, TorchGuardError
from web.settings import MODES, variable_of

FORBIDDEN = ("torch", "transformers", "tensorflow", "jax", "cupy")

log = logging.getLogger(__name__)


class Guard(MetaPathFinder):
    """Refuses the import of a forbidden package, or warns once about each.

    `importlib.util.find_spec` is refused too: to a library that only probes, the package looks not importable.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._warned: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Never finds anything; raises TorchGuardError for a forbidden package in mode `error`."""
        package = fullname.partition(".")[0]
        if package in FORBIDDEN:
            self.refuse(package, "must not be imported")
        return None

    def refuse(self, package: str, what: str) -> None:
        """Raise, or in mode `warn` log once, why `package` has no place here."""
        line = (
            f"{package} {what} in a web worker: CUDA does not survive the fork and each worker would hold a copy; "
            f"models belong in the daemon (gpu-server start). To allow it set {variable_of('torch_guard')}=off (or warn)"
        )
        if self.mode == "error":
            raise TorchGuardError(line, name=package)
        if package not in self._warned:
            self._warned.add(package)
            log.warning(line)


def install(mode: str = "error") -> None:
    """Turn the guard on in this process, in place of an earlier one; mode `off` only removes that.

    Raises TorchGuardError in mode `error` if a forbidden package is imported already, ConfigError on an unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"{variable_of('torch_guard')}: {mode!r} is not one of {', '.join(MODES)}")
    remove()
    if mode == "off":
        return
    guard = Guard(mode)
    for package in FORBIDDEN:
        if package in sys.modules:
            guard.refuse(package, "is already imported")
    sys.meta_path.insert(0, guard)


def remove() -> None:
    """Turn the guard off."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Guard)]
