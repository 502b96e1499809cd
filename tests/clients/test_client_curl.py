"""Every curl line of the documentation, as it stands there but for the address."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from typing import Any
from urllib.parse import urlsplit

import pytest
from expectations import TEXTS, Expectations
from running_daemon import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
ADDRESS = re.compile(r"(http://)?(localhost|127\.0\.0\.1):8000")
LINE = re.compile(r"^\$ (curl (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)


OF_ANOTHER_APP = "localhost:8000/classify"
"""The address of the app that the README writes; tests/unit/test_docs.py sends what the page sends it."""


def documented() -> list[Any]:
    """One case for each line; what it is piped into is left out."""
    return [
        pytest.param(line.split(" | ")[0].split(" > ")[0], id=f"{page.name}-{number}")
        for page in PAGES
        for number, line in enumerate(LINE.findall(page.read_text("utf-8")))
        if ADDRESS.search(line) and OF_ANOTHER_APP not in line
    ]


def run(command: str, url: str) -> bytes:
    line = ADDRESS.sub(url, command).replace("curl ", "curl --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, f"{command}\n{done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout


@pytest.mark.parametrize("command", documented())
def test_a_documented_line_works(url: str, expected: Expectations, command: str) -> None:
    answered = run(command, url)
    words = shlex.split(command)
    if "-d" not in words:
        return
    given = words[words.index("-d") + 1]
    address = next(word for word in words if ADDRESS.search(word))
    answer = json.loads(answered)
    match urlsplit(f"http://{address.removeprefix('http://')}").path:
        case "/embed" | "/":
            compare(expected, answer, json.loads(given)["inputs"])
        case "/v1/embeddings":
            compare(expected, [row["embedding"] for row in answer["data"]], json.loads(given)["input"])
        case "/v1/models/Classifier/infer":
            assert answer["outputs"].keys() == {"label", "score"}


def compare(expected: Expectations, vectors: Any, given: str | list[str]) -> None:
    texts = [given] if isinstance(given, str) else given
    assert set(texts) <= set(TEXTS), f"expectations.TEXTS lacks a text that the documentation shows: {texts}"
    expected.embeddings(vectors, texts)


def test_the_documentation_shows_some() -> None:
    assert len(documented()) >= 3
