"""Routes and their descriptions to one OpenAPI 3.1 document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gpu_server import __version__
from web.encoding import JSON
from web.openapi import responses
from web.openapi.about import TAGS, About
from web.routing import Handler, Route

Json = dict[str, Any]
SCHEMAS = "#/components/schemas/{name}"
OVERVIEW = """\
GPU models behind web workers, for the clients of several APIs as they are.

* A model is chosen by the body's `model` or by the path, else it is the first served one that the route can use. A name may
  be the last part of a model's name, and in a path its `/` may stay as it is.
* Unknown keys of a body are ignored, and null means the default.
* Bodies may be compressed (`content-encoding: gzip` or `deflate`). `/info` tells the limits.
* Every answer has an `x-request-id`: the caller's, where it sent one. A W3C `traceparent` is passed on.
* Every error is JSON in the shape that the route's clients read; 429 and 503 say in `retry-after` when to try again.
"""
VARIABLES = {
    "model": "a served model's name",
    "version": "the model's version, as its metadata says",
}
_VARIABLE = re.compile(r"<(?:path:)?(\w+)>")


def document(
    table: Sequence[Route], described: Mapping[str, About], base: str = "", secured: bool = False
) -> Json:
    """The document of all routes of `table`, which are under the path `base`; secured: most of them need a key."""
    schemas, components = _schemas(table, described)
    paths: Json = {}
    for route in table:
        operation = _operation(route, described[name_of(route.handler)], schemas, secured)
        paths.setdefault(template(route.path), {})[route.method.lower()] = operation
    keys = {"key": {"type": "http", "scheme": "bearer", "description": "an API key of this server"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gpu-server",
            "version": __version__,
            "summary": "One GPU model process behind many web workers",
            "description": OVERVIEW,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": base or "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": [{"key": []}] if secured else [],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": responses.HEADERS,
            "responses": responses.errors(schemas),
            "securitySchemes": keys if secured else {},
        },
    }


def name_of(handler: Handler) -> str:
    """What a handler is described under: its module's last name and its own."""
    return f"{handler.__module__.rpartition('.')[2]}.{handler.__name__}"


def template(path: str) -> str:
    """A path with its variables as OpenAPI writes them."""
    return _VARIABLE.sub(r"{\1}", path)


def bodies(route: Route) -> tuple[type[msgspec.Struct], ...]:
    """The types that the body of a route may be of."""
    return (route.body,) if route.body is not None else route.reads


def _schemas(
    table: Iterable[Route], described: Mapping[str, About]
) -> tuple[Mapping[Any, Json], dict[str, Json]]:
    """The schema of each type that is used, and the components they refer to."""
    types: dict[Any, None] = dict.fromkeys(responses.ERRORS.values())
    for route in table:
        about = described[name_of(route.handler)]
        found = [
            *about.answers,
            *bodies(route),
            about.unready,
            *about.takes.values(),
            *about.gives.values(),
        ]
        types |= dict.fromkeys(kind for kind in found if kind is not None and not isinstance(kind, dict))
    made, components = msgspec.json.schema_components(list(types), ref_template=SCHEMAS)
    return dict(zip(types, made, strict=True)), components


def _operation(route: Route, about: About, schemas: Mapping[Any, Json], secured: bool) -> Json:
    rest = (route.handler.__doc__ or "").partition("\n")[2]
    operation: Json = {
        "tags": [about.tag],
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{template(route.path)}").strip("_"),
        "parameters": _parameters(route, about),
        "responses": responses.responses(route, about, schemas, secured),
    }
    if description := " ".join(rest.split()):
        operation["description"] = description
    others = list(about.takes.values())
    if kinds := [kind for kind in bodies(route) if kind not in others]:
        examples = {name: {"value": example.body} for name, example in about.examples.items()}
        content = {JSON: {"schema": responses.any_of(kinds, schemas), "examples": examples}}
        content |= {
            kind: {"schema": responses.as_schema(value, schemas)} for kind, value in about.takes.items()
        }
        operation["requestBody"] = {"required": True, "content": content}
    if route.open:
        operation["security"] = []
    return operation


def _parameters(route: Route, about: About) -> list[Json]:
    examples = {"model": about.model, "version": "1"}
    names = [
        {
            "name": name, "in": "path", "required": True, "description": VARIABLES[name],
            "schema": {"type": "string", "minLength": 1, "maxLength": 255}, "example": examples[name],
        }
        for name in _VARIABLE.findall(route.path)
    ]  # fmt: skip
    headers = [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in about.headers.items()
    ]
    query = [{"name": name, "in": "query", "schema": schema} for name, schema in about.query.items()]
    return names + headers + query
