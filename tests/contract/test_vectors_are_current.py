"""The vectors in proto/ are what scripts/vectors writes, and each names a clause that PROTOCOL.md has."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ["valid.json", "invalid.json"]


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
    clauses = set(
        re.findall(r"^(\d\.\d) ", (ROOT / "proto" / "PROTOCOL.md").read_text("utf-8"), re.MULTILINE)
    )
    assert len({v["name"] for v in vectors}) == len(vectors)
    assert {v["clause"] for v in vectors} <= clauses
