"""Errors to HTTP: status, headers and a JSON body in the shape that the route's clients expect."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
    UnprocessableEntity,
)

from gpu_server.errors import Overloaded, RemoteError
from web.context import request_id
from web.encoding import json_response
from web.settings import variable_of

# Where HTTP clients of embedding servers expect another status than the protocol's own.
_STATUS = {"invalid_request": 422, "model_failed": 424, "out_of_memory": 424}
_KIND = {424: "Backend", 429: "Overloaded", 503: "Unhealthy", 504: "Timeout"}


class BadField(UnprocessableEntity):
    """A field of the body is not what the route takes."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class EmptyInput(BadRequest):
    """There is nothing to work on."""

    def __init__(self, field: str) -> None:
        super().__init__(f"`{field}` cannot be empty")
        self.field = field


@dataclass(frozen=True)
class Problem:
    """One error, before it takes a shape: `kind` is TEI's error type, `code` the protocol's."""

    status: int
    kind: str
    code: str
    message: str
    field: str | None = None
    retry_after_s: float | None = None


def register(app: Flask) -> None:
    """Answer every error of `app` as JSON."""
    app.register_error_handler(RemoteError, lambda error: respond(from_remote(error)))
    app.register_error_handler(HTTPException, _on_http)


def from_remote(error: RemoteError) -> Problem:
    """The problem that an error reply, or its client-made twin, is."""
    status = _STATUS.get(error.code, error.http_status)
    field = error.details.get("field")
    retry = (error.retry_after_s if isinstance(error, Overloaded) else 1.0) if error.retryable else None
    return Problem(status, kind_of(status), error.code, error.message, field, retry)


def kind_of(status: int) -> str:
    """TEI's error type of a status; `Empty` is the one that the status does not tell."""
    return _KIND.get(status, "Validation" if status < 500 else "Backend")


def respond(problem: Problem) -> Response:
    """The response: OpenAI's shape under /v1, TEI's elsewhere; Retry-After where trying again may help."""
    if request.path.startswith("/v1/") or request.path == "/embeddings":
        body: dict[str, object] = {"error": _openai(problem)}
    else:
        body = {"error": problem.message, "error_type": problem.kind}
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, ceil(problem.retry_after_s)))
    return json_response(body, problem.status, headers)


def _openai(problem: Problem) -> dict[str, object]:
    kind = "server_error" if problem.status == 424 or problem.status >= 500 else "invalid_request_error"
    if problem.status == 429:
        kind = "rate_limit_error"
    return {"message": problem.message, "type": kind, "param": problem.field, "code": problem.code}


def _on_http(error: HTTPException) -> Response:
    plain = error.get_response()
    status = plain.status_code
    kind = "Empty" if isinstance(error, EmptyInput) else kind_of(status)
    code = error.name.lower().replace(" ", "_")
    response = respond(Problem(status, kind, code, _message(error), getattr(error, "field", None) or None))
    for name, value in plain.headers:
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def _message(error: HTTPException) -> str:
    if isinstance(error, InternalServerError) and error.original_exception is not None:
        current_app.logger.error("the error above belongs to request %s", request_id())
        return f"internal error; the log has it under request id {request_id()}"
    if isinstance(error, RequestEntityTooLarge):
        limit = current_app.config["MAX_CONTENT_LENGTH"]
        return f"the body exceeds {limit} bytes, the limit that {variable_of('max_body_bytes')} sets"
    if error.description is not None and error.description != type(error).description:
        return error.description
    if isinstance(error, NotFound):
        return f"no such route: {request.path}"
    if isinstance(error, MethodNotAllowed):
        return f"{request.method} is not allowed here; allowed: {', '.join(error.valid_methods or ())}"
    return error.name
