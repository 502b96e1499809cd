"""Findings on the environment: variables of this project's that set nothing."""

from __future__ import annotations

from collections.abc import Iterable

from gpu_server.checks.finding import Finding
from gpu_server.variables import unread


def variables() -> list[Finding]:
    """One for each that is misspelt; those of the web tier are that tier's."""
    return findings(unread())


def findings(lines: Iterable[str]) -> list[Finding]:
    """Lines of `unread`, of whichever tier, as findings."""
    parts = [line.partition("; ") for line in lines]
    return [Finding("variables", "warning", said, fix) for said, _, fix in parts]
