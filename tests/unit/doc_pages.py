"""The documentation's pages, and the parts of a page that the tests of it look at."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for top in ("docs", "examples", "proto") for p in (ROOT / top).rglob("*.md"))]
)
README = ROOT / "README.md"
CHINESE = ROOT / "README.zh-CN.md"
OPERATIONS = ROOT / "docs" / "operations.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(page: Path, language: str | None = None) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text("utf-8")) if language in (None, kind)]


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text("utf-8"))


def code(page: Path) -> str:
    """Everything a reader might type: code spans and blocks."""
    return "\n".join([*blocks(page), *re.findall(r"`([^`\n]+)`", prose(page))])


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its two header rows and without back-ticks."""
    text = page.read_text("utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


def anchors(page: Path) -> set[str]:
    titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(prose(page))]
    return {title.strip().replace(" ", "-") for title in titles}


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))
