"""The vectors in proto/ are what scripts/vectors writes, and each names a clause that PROTOCOL.md has."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ["valid.json", "invalid.json"]


def numbers(pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / "proto" / "PROTOCOL.md").read_text("utf-8"), re.MULTILINE)


def test_generator_writes_these_very_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "vectors", tmp_path], check=True, timeout=60)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (ROOT / "proto" / "vectors" / name).read_bytes()


def test_generator_does_not_use_the_codec_under_test() -> None:
    sources = [ROOT / "scripts" / "vectors", *(ROOT / "scripts" / "golden").glob("*.py")]
    assert len(sources) > 5
    foreign = re.compile(r"^\s*(from|import) (gpu_server|msgspec|numpy)", re.MULTILINE)
    assert not [s.name for s in sources if foreign.search(s.read_text("utf-8"))]


@pytest.mark.parametrize("name", FILES)
def test_vectors_are_named_once_and_cite_real_clauses(name: str) -> None:
    vectors = json.loads((ROOT / "proto" / "vectors" / name).read_text("utf-8"))
    assert len({v["name"] for v in vectors}) == len(vectors)
    assert {v["clause"] for v in vectors} <= set(numbers(r"^(\d+\.\d+) "))


def test_sections_and_clauses_are_numbered_in_order() -> None:
    sections, clauses = numbers(r"^## (\d+)\. "), numbers(r"^(\d+\.\d+) ")
    assert sections == [str(i + 1) for i in range(len(sections))]
    by_section = {s: [c.partition(".")[2] for c in clauses if c.partition(".")[0] == s] for s in sections}
    assert clauses == [f"{s}.{i + 1}" for s in sections for i in range(len(by_section[s]))]
    assert all(by_section.values())
