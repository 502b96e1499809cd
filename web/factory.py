"""`create_app`: the Flask application, put together from its parts."""

from __future__ import annotations

from flask import Flask

from gpu_server.client import Client
from web import tracing
from web.auth import Keys
from web.cors import Cors
from web.mount import mount, share
from web.settings import Settings


def create_app(client: Client | None = None, settings: Settings | None = None) -> Flask:
    """A Flask app that serves the daemon's models; connects on the first request, in the process that serves it.

    client: None makes one for $GPU_SERVER_ENDPOINT or the default place. settings: None reads the environment.
    Raises ConfigError on a bad setting, key or endpoint, MissingDependency without `tokenizers`.
    """
    shared = share(client, settings)
    app = Flask("web", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = shared.settings.max_body_bytes
    mount(app, shared, Keys.from_settings(shared.settings), whole=True)
    if shared.settings.tracing:
        app.wsgi_app = tracing.TracedApp(app.wsgi_app)  # type: ignore[method-assign]
    if shared.settings.cors_allow_origins:
        app.wsgi_app = Cors(app.wsgi_app, shared.settings.cors_allow_origins)  # type: ignore[method-assign]
    return app
