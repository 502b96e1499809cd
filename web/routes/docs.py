"""What this server offers, described: the OpenAPI document and a page that shows it."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import orjson

from web.call import Call
from web.encoding import Answer
from web.openapi.described import DESCRIBED
from web.openapi.document import document
from web.pages import page_answer
from web.routing import Routes

routes = Routes("tei")

PATHS = ("/api-doc/openapi.json", "/openapi.json")
PAGE = page_answer(files("web.openapi").joinpath("page.html").read_bytes())


@routes.get(*PATHS)
def openapi(call: Call) -> Answer:
    """This description, as OpenAPI 3.1."""
    environ, settings = call.environ, call.settings
    at = environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]
    base = next(at.removesuffix(path) for path in PATHS if at.endswith(path))
    return Answer(_document(base, bool(settings.api_keys or settings.api_keys_file)))


@routes.get("/docs", open=True)
def page(call: Call) -> Answer:
    """This description as a page to read and to try. It needs no key itself: it asks for one where the document does."""
    return PAGE


@lru_cache(maxsize=8)
def _document(base: str, secured: bool) -> bytes:
    # Here, because the table holds this route too.
    from web.routes import TABLE

    return orjson.dumps(document(TABLE, DESCRIBED, base, secured))
