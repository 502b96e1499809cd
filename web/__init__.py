"""The stock web frontend: `gunicorn web:app`, `create_app()` to add routes of your own, `GPUServer` for your own app.

Public names are loaded on first use, so that Gunicorn's master can read `web.serving` without loading the app.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from web.backend import get_client
    from web.factory import create_app
    from web.mount import GPUServer

    app: Flask

__all__ = ["GPUServer", "app", "create_app", "get_client"]


def __getattr__(name: str) -> object:
    if name == "get_client":
        from web.backend import get_client

        return get_client
    if name == "GPUServer":
        from web.mount import GPUServer

        return GPUServer
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from web.factory import create_app

    if name == "create_app":
        return create_app
    globals()["app"] = made = create_app()
    return made
