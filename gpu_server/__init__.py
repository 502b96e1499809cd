"""gpu-server: put a GPU model behind Gunicorn and Flask.

Public names are loaded on first use, so that `import gpu_server` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gpu_server._version import __version__

if TYPE_CHECKING:
    from gpu_server.aio import AsyncClient
    from gpu_server.client import Client
    from gpu_server.errors import GPUServerError, RemoteError
    from gpu_server.models.base import Model
    from gpu_server.text_calls import SparseVector, TokenLabel

_HOME = {
    "AsyncClient": "gpu_server.aio",
    "Client": "gpu_server.client",
    "GPUServerError": "gpu_server.errors",
    "Model": "gpu_server.models.base",
    "RemoteError": "gpu_server.errors",
    "SparseVector": "gpu_server.text_calls",
    "TokenLabel": "gpu_server.text_calls",
}

__all__ = [
    "AsyncClient",
    "Client",
    "GPUServerError",
    "Model",
    "RemoteError",
    "SparseVector",
    "TokenLabel",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
