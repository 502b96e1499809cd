"""HTML pages that are whole in one file: no other server is asked, and no other script runs."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

from web.encoding import Answer


def page_answer(page: bytes) -> Answer:
    """The page, with a Content-Security-Policy that lets in just its own style and script and asks only its own server."""
    return Answer(page, headers=_headers(page), content_type="text/html; charset=utf-8")


def _headers(page: bytes) -> dict[str, str]:
    style, script = (_hash(page, tag) for tag in ("style", "script"))
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(page: bytes, tag: str) -> str:
    """The block of a tag as a policy names it."""
    block = re.search(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
    return f"'sha256-{b64encode(sha256(block[1] if block else b'').digest()).decode()}'"
