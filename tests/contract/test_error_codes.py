"""proto/errors.json and gpu_server.errors say the same."""

import json
from pathlib import Path

from gpu_server import errors

CODES = json.loads((Path(__file__).parents[2] / "proto" / "errors.json").read_text("utf-8"))


def test_every_code_has_its_class_and_every_class_its_code() -> None:
    classes = errors.RemoteError.__subclasses__()
    stated = [(e["code"], e["class"], e["http"], e["retryable"]) for e in CODES]
    coded = [(c.code, c.__name__, c.http_status, c.retryable) for c in classes]
    assert sorted(coded) == sorted(stated)


def test_every_code_has_a_description_and_comes_once() -> None:
    assert all(set(e) == {"code", "class", "http", "retryable", "description"} for e in CODES)
    assert all(e["description"].endswith(".") for e in CODES)
    assert len({e["code"] for e in CODES}) == len(CODES)
