"""Errors to HTTP: status, headers and a JSON body in the shape that the route's clients expect."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Literal

from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound, UnprocessableEntity
from werkzeug.exceptions import RequestEntityTooLarge as BodyTooLarge

from gpu_server.errors import Overloaded, RemoteError
from web.context import request_id
from web.encoding import Answer, json_answer
from web.settings import variable_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Dialect = Literal["tei", "openai", "cohere", "kserve"]
DIALECT = "gpu_server.dialect"
"""Where the route that serves a request says how its errors look."""

# Where HTTP clients of embedding servers expect another status than the protocol's own.
_STATUS = {"invalid_request": 422, "model_failed": 424, "out_of_memory": 424}
_KIND = {401: "Unauthorized", 424: "Backend", 429: "Overloaded", 503: "Unhealthy", 504: "Timeout"}


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
    headers: tuple[tuple[str, str], ...] = ()


def problem_of(error: RemoteError | HTTPException, environ: WSGIEnvironment, body_limit: int) -> Problem:
    """The problem that an error is."""
    return from_remote(error) if isinstance(error, RemoteError) else _from_http(error, environ, body_limit)


def from_remote(error: RemoteError) -> Problem:
    """The problem that an error reply, or its client-made twin, is."""
    status = _STATUS.get(error.code, error.http_status)
    field = error.details.get("field")
    retry = (error.retry_after_s if isinstance(error, Overloaded) else 1.0) if error.retryable else None
    return Problem(status, kind_of(status), error.code, error.message, field, retry)


def defect(environ: WSGIEnvironment) -> Problem:
    """The problem of an exception that nobody expected: says where to look and nothing else."""
    message = f"internal error; the log has it under request id {request_id(environ)}"
    return Problem(500, kind_of(500), "internal_server_error", message)


def kind_of(status: int) -> str:
    """TEI's error type of a status; `Empty` is the one that the status does not tell."""
    return _KIND.get(status, "Validation" if status < 500 else "Backend")


def render(problem: Problem, environ: WSGIEnvironment) -> Answer:
    """The answer in the dialect of the request's route; Retry-After where trying again may help."""
    dialect = environ.get(DIALECT) or _dialect_of_path(environ.get("PATH_INFO", ""))
    body: dict[str, object]
    if dialect == "openai":
        body = {"error": _openai(problem)}
    elif dialect == "cohere":
        body = {"id": request_id(environ), "message": problem.message}
    elif dialect == "kserve":
        body = {"error": problem.message}
    else:
        body = {"error": problem.message, "error_type": problem.kind}
    headers = dict(problem.headers)
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, ceil(problem.retry_after_s)))
    return json_answer(body, problem.status, headers)


def _dialect_of_path(path: str) -> Dialect:
    if path.startswith("/v2"):
        return "kserve"
    return "openai" if path.startswith("/v1/") else "tei"


def _openai(problem: Problem) -> dict[str, object]:
    kind = "server_error" if problem.status == 424 or problem.status >= 500 else "invalid_request_error"
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(problem.status, kind)
    return {"message": problem.message, "type": kind, "param": problem.field, "code": problem.code}


def _from_http(error: HTTPException, environ: WSGIEnvironment, body_limit: int) -> Problem:
    plain = error.get_response()
    headers = tuple((k, v) for k, v in plain.headers if k not in ("Content-Type", "Content-Length"))
    kind = "Empty" if isinstance(error, EmptyInput) else kind_of(plain.status_code)
    code = error.name.lower().replace(" ", "_")
    field = getattr(error, "field", None) or None
    message = _message(error, environ, body_limit)
    return Problem(plain.status_code, kind, code, message, field, headers=headers)


def _message(error: HTTPException, environ: WSGIEnvironment, body_limit: int) -> str:
    if isinstance(error, BodyTooLarge):
        return f"the body exceeds {body_limit} bytes, the limit that {variable_of('max_body_bytes')} sets"
    if error.description is not None and error.description != type(error).description:
        return error.description
    if isinstance(error, NotFound):
        return f"no such route: {environ.get('PATH_INFO', '')}"
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(error.valid_methods or ())
        return f"{environ.get('REQUEST_METHOD')} is not allowed here; allowed: {allowed}"
    return error.name
