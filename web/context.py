"""What belongs to one HTTP request: its id, which is echoed, and its W3C trace context, which is passed on."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

REQUEST_ID = "x-request-id"
_KEY = "gpu_server.request_id"
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def request_id(environ: WSGIEnvironment) -> str:
    """The caller's `x-request-id` if it is printable ASCII of at most 128 characters, else a new one."""
    known = environ.get(_KEY)
    if known is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        known = environ[_KEY] = given if _ID.fullmatch(given) else uuid.uuid4().hex
    return str(known)


def traceparent(environ: WSGIEnvironment) -> str:
    """The caller's `traceparent` if it is valid, else ""."""
    given = environ.get("HTTP_TRACEPARENT", "")
    return given if given and _TRACEPARENT.fullmatch(given) else ""
