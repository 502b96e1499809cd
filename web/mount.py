"""The routes in a Flask app: as a whole app of their own, or mounted in one that has other things to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Blueprint, Flask, Response, current_app, request
from flask.sansio.scaffold import Scaffold
from werkzeug.exceptions import HTTPException, InternalServerError

from gpu_server import tokenizing
from gpu_server.client import Client
from gpu_server.errors import MissingDependency, RemoteError
from web import fast
from web.auth import Keys
from web.call import Call, Shared
from web.context import REQUEST_ID, request_id
from web.counts import ROUTE, CountedApp, Counts, reporter
from web.encoding import Answer
from web.errors import DIALECT, defect, problem_of, render
from web.gate import Gate
from web.routes import TABLE
from web.routing import Route, run
from web.settings import Settings

NAME = "gpu_server"


class GPUServer:
    """Flask extension: every route of `web:app`, under `url_prefix`, in an app of your own.

    Its errors, keys and request ids are those of its own routes and touch no others. client, settings: as `create_app`.
    Use as `GPUServer(app)`, or `init_app(app)` later; raises what `create_app` raises.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        client: Client | None = None,
        settings: Settings | None = None,
        url_prefix: str = "",
    ) -> None:
        self._client = client
        self._settings = settings
        self._url_prefix = url_prefix
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Mount the routes in `app`."""
        shared = share(self._client, self._settings)
        mount(app, shared, Keys.from_settings(shared.settings), self._url_prefix)


def share(client: Client | None, settings: Settings | None) -> Shared:
    """What the requests of an app will share."""
    if not tokenizing.available():
        raise MissingDependency(
            "web needs the package tokenizers; install gpu-server with its web extra: pip install '.[web]' in the clone"
        )
    settings = settings or Settings.from_env()
    gate = Gate(settings.max_concurrent_requests) if settings.max_concurrent_requests else None
    client = client or Client(timeout_s=settings.timeout_s)
    return Shared(client, settings, Counts((route.name for route in TABLE), reporter(client)), gate)


def mount(app: Flask, shared: Shared, keys: Keys, url_prefix: str = "", whole: bool = False) -> None:
    """Add the routes to `app`, and the fast layer in front of it unless the app has hooks already.

    whole: errors, keys and request ids of the whole app, and not only of these routes, are handled as theirs.
    """
    theirs = fast.hooks(app)
    blueprint = Blueprint(NAME, __name__, url_prefix=url_prefix or None)
    target: Scaffold = app if whole else blueprint
    routes: dict[str | None, Route] = {}
    for i, route in enumerate(TABLE):
        endpoint = f"{route.handler.__name__}_{i}"
        blueprint.add_url_rule(route.path, endpoint, _view(route, shared), methods=[route.method])
        routes[f"{NAME}.{endpoint}"] = route
    target.before_request(lambda: _admit(routes.get(request.endpoint), keys))
    target.after_request(_echo_id)
    limit = shared.settings.max_body_bytes
    target.register_error_handler(RemoteError, lambda error: _on_error(error, limit))
    target.register_error_handler(HTTPException, lambda error: _on_error(error, limit))
    app.register_blueprint(blueprint)
    app.extensions[NAME] = shared
    if not theirs:
        fast.install(app, shared, keys, url_prefix, routes)
    app.wsgi_app = CountedApp(app.wsgi_app, shared.counts, rest=whole)  # type: ignore[method-assign]


def _admit(route: Route | None, keys: Keys) -> None:
    """Note how errors of this route look, and refuse a caller without a key where one is needed."""
    if route is not None:
        request.environ[DIALECT], request.environ[ROUTE] = route.dialect, route.name
    if keys and not (route is not None and route.open):
        keys.check(request.environ)


def _view(route: Route, shared: Shared) -> Callable[..., Response]:
    def view(**values: Any) -> Response:
        # A hook of the app may have read the body already; then Flask has it.
        body = request.get_data() if "stream" in request.__dict__ else None
        return _response(run(route, Call(request.environ, shared, body), values))

    return view


def _on_error(error: RemoteError | HTTPException, limit: int) -> Response:
    if isinstance(error, InternalServerError) and error.original_exception is not None:
        current_app.logger.error("the error above belongs to request %s", request_id(request.environ))
        return _response(render(defect(request.environ), request.environ))
    return _response(render(problem_of(error, request.environ, limit), request.environ))


def _echo_id(response: Response) -> Response:
    response.headers[REQUEST_ID] = request_id(request.environ)
    return response


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers, content_type=answer.content_type)
