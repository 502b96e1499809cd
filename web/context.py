"""What belongs to one HTTP request: its id, which is echoed, and its W3C trace context, which is passed on."""

from __future__ import annotations

import re
import uuid

from flask import Flask, Response, g, request

REQUEST_ID = "x-request-id"
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def register(app: Flask) -> None:
    """Give every request an id and every response the same."""
    app.before_request(_begin)
    app.after_request(_finish)


def request_id() -> str:
    """The caller's `x-request-id` if it is printable ASCII of at most 128 characters, else a new one."""
    if "request_id" not in g:
        given = request.headers.get(REQUEST_ID, "")
        g.request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
    known: str = g.request_id
    return known


def traceparent() -> str:
    """The caller's `traceparent` if it is valid, else ""."""
    given = request.headers.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else ""


def _begin() -> None:
    request_id()


def _finish(response: Response) -> Response:
    response.headers[REQUEST_ID] = request_id()
    return response
