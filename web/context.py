"""What belongs to one HTTP request: its id, which is echoed, and its W3C trace context, which is passed on."""

from __future__ import annotations

import hashlib
import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

REQUEST_ID = "x-request-id"
_ID_KEY = "gpu_server.request_id"
_TRACE_KEY = "gpu_server.traceparent"
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def request_id(environ: WSGIEnvironment) -> str:
    """The caller's `x-request-id` if it is printable ASCII of at most 128 characters.

    Else the trace id of its `traceparent`, else a new one.
    """
    known = environ.get(_ID_KEY)
    if known is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        if not _ID.fullmatch(given):
            given = _given_traceparent(environ)[3:35] or f"{random.getrandbits(128) or 1:032x}"
        known = environ[_ID_KEY] = given
    return str(known)


def traceparent(environ: WSGIEnvironment) -> str:
    """The caller's `traceparent` if it is valid, else one made of the request's id: unsampled, for the logs alone."""
    known = environ.get(_TRACE_KEY)
    if known is None:
        known = _given_traceparent(environ) or f"00-{_trace_id(request_id(environ))}-{new_span_id()}-00"
        environ[_TRACE_KEY] = known
    return str(known)


def known_ids(environ: WSGIEnvironment) -> dict[str, str]:
    """Id and trace id of a request, as far as it has them."""
    found = {"request_id": environ.get(_ID_KEY, ""), "trace": environ.get(_TRACE_KEY, "")[3:35]}
    return {name: value for name, value in found.items() if value}


def new_span_id() -> str:
    """16 hex digits, not all of them 0."""
    return f"{random.getrandbits(64) or 1:016x}"


def _trace_id(given: str) -> str:
    """A request id that is no trace id has one of its own, always the same."""
    if _TRACE_ID.fullmatch(given):
        return given
    return hashlib.blake2b(given.encode(), digest_size=16).hexdigest()


def _given_traceparent(environ: WSGIEnvironment) -> str:
    given = environ.get("HTTP_TRACEPARENT", "")
    return given if given and _TRACEPARENT.fullmatch(given) else ""
