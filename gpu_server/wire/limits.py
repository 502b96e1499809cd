"""Sizes that bound every message; announced in `hello` and enforced on both sides."""

from __future__ import annotations

import msgspec

MAX_REQUEST_HEADER_BYTES = 4096
MAX_BATCH_HEADER_BYTES = 8192
MAX_REPLY_HEADER_BYTES = 262_144
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 40


class Limits(msgspec.Struct, frozen=True):
    """Limits of one server, in bytes and items (PROTOCOL 1.4, 3.3)."""

    max_frame_bytes: int = 16 << 20
    max_request_bytes: int = 32 << 20
    max_items: int = 2048
    max_text_bytes: int = 1 << 20
