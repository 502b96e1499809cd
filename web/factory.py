"""`create_app`: the Flask application, put together from its parts."""

from __future__ import annotations

from flask import Flask

from gpu_server import tokenizing
from gpu_server.client import Client
from gpu_server.errors import MissingDependency
from web import backend, context, errors
from web.routes import generic, health, openai, tei
from web.settings import Settings


def create_app(client: Client | None = None, settings: Settings | None = None) -> Flask:
    """A Flask app that serves the daemon's models; connects on the first request, in the process that serves it.

    client: None makes one for $GPU_SERVER_ENDPOINT or the default place. settings: None reads the environment.
    Raises ConfigError on a bad setting or endpoint, MissingDependency without `tokenizers`.
    """
    if not tokenizing.available():
        raise MissingDependency(
            "web needs the package tokenizers; install gpu-server with its web extra: pip install '.[web]' in the clone"
        )
    settings = settings or Settings.from_env()
    app = Flask("web", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    backend.register(app, client or Client(timeout_s=settings.timeout_s), settings)
    context.register(app)
    errors.register(app)
    for routes in (tei, openai, generic, health):
        app.register_blueprint(routes.blueprint)
    return app
