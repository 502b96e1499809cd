"""The hot routes answered in front of Flask's dispatch, which costs more than all the rest of a small request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Flask, signals
from werkzeug.exceptions import HTTPException

from gpu_server.errors import RemoteError
from web.auth import Keys
from web.call import Call, Shared
from web.context import REQUEST_ID, request_id
from web.counts import ROUTE
from web.encoding import Answer
from web.errors import DIALECT, defect, problem_of, render
from web.routes import TABLE
from web.routing import Route, run

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SIGNALS = (
    signals.request_started, signals.request_finished, signals.request_tearing_down, signals.got_request_exception,
    signals.appcontext_pushed, signals.appcontext_popped, signals.appcontext_tearing_down,
)  # fmt: skip
"""What Flask sends around a request, to whoever listens."""

_STATUS = {s.value: f"{s.value} {s.phrase}" for s in HTTPStatus} | {499: "499 Client Closed Request"}


def install(
    app: Flask, shared: Shared, keys: Keys, url_prefix: str, endpoints: Mapping[str | None, Route]
) -> None:
    """Put the layer around `app.wsgi_app`, once the routes and their own hooks, and no others, are in the app.

    endpoints: the routes by the endpoint that Flask has them under.
    """
    app.wsgi_app = FastLayer(app, shared, keys, url_prefix, endpoints)  # type: ignore[method-assign]


class FastLayer:
    """Answers the hot routes as Flask would, byte for byte, and hands all else to it.

    Steps aside, so that Flask serves these routes too, in an app that was given hooks or error handlers besides its own,
    or whose signals somebody listens to: they are honoured at the price of Flask's dispatch. So it does for a path that
    Flask gives to a route of the app's own. That is settled at the first request, after which the app takes no more.
    """

    def __init__(
        self, app: Flask, shared: Shared, keys: Keys, url_prefix: str, endpoints: Mapping[str | None, Route]
    ) -> None:
        self.inner: WSGIApplication = app.wsgi_app
        self._app = app
        self._endpoints = endpoints
        self._shared = shared
        self._keys = keys
        self._routes = {url_prefix + r.path: r for r in TABLE if r.hot and "<" not in r.path}
        self._hooks = hooks(app)
        self._settled = False

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self._settled:
            self._settle()
        route = self._routes.get(environ["PATH_INFO"])
        if route is None or environ["REQUEST_METHOD"] != route.method:
            return self.inner(environ, start_response)
        answer = self._answer(route, environ)
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            *answer.headers.items(),
            (REQUEST_ID, request_id(environ)),
        ]
        start_response(_STATUS[answer.status], headers)
        return [answer.body]

    def _settle(self) -> None:
        by_host = self._app.url_map.host_matching or self._app.subdomain_matching
        if by_host or hooks(self._app) != self._hooks:
            self._routes = {}
        self._routes = {path: route for path, route in self._routes.items() if self._reached(path, route)}
        # As Flask's own dispatch does at its first request: setup that comes later is an error, and not ignored.
        self._app._got_first_request = True
        self._settled = True

    def _reached(self, path: str, route: Route) -> bool:
        """Whether Flask gives the path to this route."""
        try:
            endpoint, _ = self._app.url_map.bind("").match(path, route.method)
        except HTTPException:
            return False
        return self._endpoints.get(endpoint) is route

    def _answer(self, route: Route, environ: WSGIEnvironment) -> Answer:
        environ[DIALECT], environ[ROUTE] = route.dialect, route.name
        try:
            if self._keys:
                self._keys.check(environ)
            return run(route, Call(environ, self._shared), {})
        except (RemoteError, HTTPException) as error:
            return render(problem_of(error, environ, self._shared.settings.max_body_bytes), environ)
        except Exception:
            # The last resort, as Flask's own: logged with its traceback, and a 500.
            self._app.logger.exception("request %s: %s", request_id(environ), environ["PATH_INFO"])
            return render(defect(environ), environ)


def hooks(app: Flask) -> tuple[object, ...]:
    """All that Flask would run around a request of any route, less what belongs to some other blueprint alone."""
    found: list[object] = [*app.teardown_appcontext_funcs]
    for by_scope in (app.before_request_funcs, app.after_request_funcs, app.teardown_request_funcs):
        found += by_scope.get(None, ())
    found += app.url_value_preprocessors.get(None, ())
    for code, handlers in app.error_handler_spec.get(None, {}).items():
        found += [(code, kind, handler) for kind, handler in handlers.items()]
    return (*found, *(signal.name for signal in SIGNALS if signal.has_receivers_for(app)))
