"""Every test that the page of faults names is there."""

from __future__ import annotations

import re

from doc_pages import ROOT

NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_named_tests_exist() -> None:
    named = NAMED.findall((ROOT / "docs" / "faults.md").read_text("utf-8"))
    assert len(named) > 50
    missing = [
        f"{path}::{name}"
        for path, name in named
        if f"def {name}(" not in (ROOT / "tests" / path).read_text("utf-8")
    ]
    assert missing == []
