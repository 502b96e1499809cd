"""What this server offers, described: the OpenAPI document and a page that shows it."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import orjson

from web.call import Call
from web.encoding import Answer
from web.routing import Routes

routes = Routes("tei")

PATHS = ("/api-doc/openapi.json", "/openapi.json")
PAGE = files("web.openapi").joinpath("page.html").read_bytes()
# The page brings all it needs, and talks to this server alone.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}


@routes.get(*PATHS)
def openapi(call: Call) -> Answer:
    """This description, as OpenAPI 3.1."""
    environ, settings = call.environ, call.settings
    at = environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]
    base = next(at.removesuffix(path) for path in PATHS if at.endswith(path))
    return Answer(_document(base, bool(settings.api_keys or settings.api_keys_file)))


@routes.get("/docs")
def page(call: Call) -> Answer:
    """This description as a page to read and to try, which needs no other server."""
    return Answer(PAGE, headers=PAGE_HEADERS, content_type="text/html; charset=utf-8")


@lru_cache(maxsize=8)
def _document(base: str, secured: bool) -> bytes:
    # Here, because the document describes this route too.
    from web.openapi.described import DESCRIBED
    from web.openapi.document import document
    from web.routes import TABLE

    return orjson.dumps(document(TABLE, DESCRIBED, base, secured))
