"""`Finding`: one thing that was looked at, how bad it is, and what to do about it."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["ok", "info", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """`check` is the subject; `found` and `fix` are for people. fix: empty where nothing needs to be done."""

    check: str
    severity: Severity
    found: str
    fix: str = ""


def fine(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", found)
