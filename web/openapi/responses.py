"""The responses of an operation: its good answers, and its errors in the dialect of its route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from web.answers import CohereError, KServeError, OpenAIError, TeiError
from web.context import REQUEST_ID
from web.cors import EXPOSED
from web.encoding import JSON
from web.errors import Dialect
from web.measures import MODEL_VERSION
from web.openapi.about import About
from web.routing import Route

Json = dict[str, Any]
ERRORS: dict[Dialect, type] = {
    "tei": TeiError, "openai": OpenAIError, "cohere": CohereError, "kserve": KServeError,
}  # fmt: skip
REASONS = {
    400: "The body is malformed, or there is nothing in it to work on.",
    401: "An API key is needed, and was not sent.",
    404: "There is no such model; the message lists those that are served.",
    409: "The model was replaced while the request was made.",
    413: "The body, or the request in it, is too large.",
    415: "The content type is none that this route takes.",
    422: "A field is not what the route takes, or over a limit; the message names it.",
    424: "The model is of another kind, or failed on an input.",
    429: "Too much work is waiting.",
    500: "A defect of the server; its log has the request's id.",
    503: "No model is served just now.",
    504: "There was no answer in time.",
}
_WORK = (400, 404, 409, 413, 415, 422, 424, 429)
_RETRY = (429, 503)
_MEASURES = tuple(name for name in EXPOSED if name.startswith("x-") and name != REQUEST_ID)
HEADERS: dict[str, Json] = {
    REQUEST_ID: {"description": "the caller's, or one made for this request", "required": True},
    "retry-after": {"description": "seconds until trying again may help", "required": False},
    **{name: {"description": "as TEI tells it; times in milliseconds", "required": True} for name in _MEASURES},
    MODEL_VERSION: {"description": "the version of the model that answered", "required": True},
}  # fmt: skip
for _name, _header in HEADERS.items():
    _kind = "string" if _name in (REQUEST_ID, "x-compute-type", MODEL_VERSION) else "integer"
    _header["schema"] = {"type": _kind} | ({"minimum": 0} if _kind == "integer" else {})


def as_schema(value: Any, schemas: Mapping[Any, Json]) -> Json:
    """A schema that is one already, or that of a type."""
    return value if isinstance(value, dict) else schemas[value]


def any_of(types: Sequence[Any], schemas: Mapping[Any, Json]) -> Json:
    """The schema of what is of one of these types."""
    return schemas[types[0]] if len(types) == 1 else {"anyOf": [schemas[kind] for kind in types]}


def errors(schemas: Mapping[Any, Json]) -> dict[str, Json]:
    """Every error of every dialect, by the name that `responses` refers to."""
    return {
        f"{dialect}_{status}": {
            "description": reason,
            "headers": _headers(("retry-after",) if status in _RETRY else ()),
            "content": {JSON: {"schema": schemas[kind]}},
        }
        for dialect, kind in ERRORS.items()
        for status, reason in REASONS.items()
    }


def responses(route: Route, about: About, schemas: Mapping[Any, Json], secured: bool) -> Json:
    """By status: the good answer, and the errors that this route can answer."""
    content: Json = {}
    if about.answers:
        examples = {name: {"value": example.answer} for name, example in about.examples.items()}
        content[JSON] = {"schema": any_of(about.answers, schemas), "examples": examples}
    content |= {kind: {"schema": as_schema(value, schemas)} for kind, value in about.gives.items()}
    headers = _headers(_MEASURES if about.measured else ())
    found: Json = {"200": {"description": "The answer.", "headers": headers, "content": content}}
    for status in sorted({*_statuses(route, about, secured), 500}):
        found[str(status)] = {"$ref": f"#/components/responses/{route.dialect}_{status}"}
    if about.unready is not None:
        content = {JSON: {"schema": schemas[about.unready]}}
        found["503"] = {
            "description": REASONS[503],
            "headers": _headers(("retry-after",)),
            "content": content,
        }
    return found


def _statuses(route: Route, about: About, secured: bool) -> list[int]:
    found = [*about.failures]
    if secured and not route.open:
        found.append(401)
    if route.work:
        found += _WORK
    elif "<" in route.path:
        found.append(404)
    return found


def _headers(names: Sequence[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (REQUEST_ID, *names)}
