"""The apps of `web_app` for an ASGI worker: each request runs in a thread of the adapter's pool."""

from __future__ import annotations

from a2wsgi import WSGIMiddleware
from web_app import app as wsgi

app = WSGIMiddleware(wsgi, workers=16)
