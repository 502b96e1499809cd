"""`Call`: one HTTP request as the handlers see it, the same in front of Flask's dispatch and under it."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from gpu_server.client import Client
from web.context import request_id, traceparent
from web.counts import Counts
from web.gate import Gate
from web.settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


@dataclass(frozen=True, slots=True)
class Shared:
    """What the requests of one app have in common."""

    client: Client
    settings: Settings
    counts: Counts
    gate: Gate | None = None


class Call:
    """One request: its headers, its body, its id and trace context, and what the app shares."""

    __slots__ = ("_body", "arrived", "environ", "shared")

    def __init__(self, environ: WSGIEnvironment, shared: Shared, body: bytes | None = None) -> None:
        self.environ = environ
        self.shared = shared
        self.arrived = time.monotonic()
        self._body = body

    @property
    def settings(self) -> Settings:
        """The app's settings."""
        return self.shared.settings

    @property
    def request_id(self) -> str:
        """The caller's `x-request-id`, or one made for this request."""
        return request_id(self.environ)

    @property
    def traceparent(self) -> str:
        """The caller's W3C trace context, "" without a valid one."""
        return traceparent(self.environ)

    @property
    def mimetype(self) -> str:
        """The content type in lower case, without its parameters."""
        return str(self.environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()

    def header(self, name: str) -> str:
        """A request header, "" where it is absent."""
        return str(self.environ.get(f"HTTP_{name.upper().replace('-', '_')}", ""))

    def body(self) -> bytes:
        """The whole body. Raises RequestEntityTooLarge over `max_body_bytes`, BadRequest where it ends early."""
        if self._body is None:
            self._body = _read(self.environ, self.shared.settings.max_body_bytes)
        return self._body


def _read(environ: WSGIEnvironment, limit: int) -> bytes:
    stream, length = environ["wsgi.input"], environ.get("CONTENT_LENGTH")
    try:
        if not length:
            data: bytes = stream.read(limit + 1) if environ.get("wsgi.input_terminated") else b""
        elif (size := int(length)) > limit:
            raise RequestEntityTooLarge
        else:
            data = stream.read(size)
            if len(data) < size:
                raise BadRequest(f"the body ended after {len(data)} of {size} bytes")
    except (OSError, ValueError, ParseException):
        raise BadRequest("the body cannot be read to its end") from None
    if len(data) > limit:
        raise RequestEntityTooLarge
    coding = environ.get("HTTP_CONTENT_ENCODING", "")
    return data if coding in ("", "identity") else _inflate(data, coding, limit)


def _inflate(data: bytes, coding: str, limit: int) -> bytes:
    """A compressed body, opened as far as the limit."""
    if coding not in ("gzip", "deflate"):
        raise UnsupportedMediaType(f"content-encoding {coding!r} is none of gzip, deflate, identity")
    opened = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        whole = opened.decompress(data, limit + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not {coding}: {error}") from None
    if len(whole) > limit:
        raise RequestEntityTooLarge
    if not opened.eof:
        raise BadRequest(f"the {coding} body is cut short")
    if opened.unused_data:
        raise BadRequest(f"the {coding} body goes on after its end")
    return whole
