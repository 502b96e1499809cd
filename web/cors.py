"""Cross-origin calls: off unless origins are named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from web.context import REQUEST_ID
from web.measures import MODEL_VERSION

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MAX_AGE_S = 600
EXPOSED = (
    REQUEST_ID, "retry-after", "x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens",
    "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time", "inference-header-content-length",
    MODEL_VERSION,
)  # fmt: skip


class Cors:
    """Answers preflights, and lets pages of the allowed origins read the answers of `inner`."""

    def __init__(self, inner: WSGIApplication, origins: str) -> None:
        self.inner = inner
        self.origins = frozenset(o.strip().rstrip("/") for o in origins.split(",") if o.strip())

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN", "")
        if "*" not in self.origins and origin not in self.origins:
            return self.inner(environ, _adding(start_response, [("Vary", "Origin")]))
        allow = [("Access-Control-Allow-Origin", "*" if "*" in self.origins else origin), ("Vary", "Origin")]
        wanted = environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD")
        if environ["REQUEST_METHOD"] == "OPTIONS" and wanted:
            headers = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS") or "authorization, content-type"
            allow += [
                ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
                ("Access-Control-Allow-Headers", headers),
                ("Access-Control-Max-Age", str(MAX_AGE_S)),
            ]
            start_response("204 No Content", allow)
            return []
        allow.append(("Access-Control-Expose-Headers", ", ".join(EXPOSED)))
        return self.inner(environ, _adding(start_response, allow))


def _adding(start_response: StartResponse, more: list[tuple[str, str]]) -> StartResponse:
    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        return start_response(status, headers + more, *rest)

    return start
