"""The header schemas accept every valid header and state the same rules as the typed structs."""

import json
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from jsonschema import Draft202012Validator
from schema_facts import REGISTRY, facts

from gpu_server.wire import ReplyHeader, RequestHeader

PROTO = Path(__file__).parents[2] / "proto"
VALID = json.loads((PROTO / "vectors" / "valid.json").read_text("utf-8"))
INVALID = json.loads((PROTO / "vectors" / "invalid.json").read_text("utf-8"))
STRUCTS = {"request": RequestHeader, "reply": ReplyHeader}


@pytest.mark.parametrize("vector", VALID, ids=lambda v: v["name"])
def test_valid_header_follows_its_schema(vector: dict[str, Any]) -> None:
    validator(vector["kind"]).validate(vector["header"])


@pytest.mark.parametrize(
    "name", ["digest-newline", "traceparent-upper", "priority-3", "unknown-key", "params-map"]
)
def test_invalid_header_breaks_its_schema(name: str) -> None:
    (vector,) = (v for v in INVALID if v["name"] == name)
    header = msgpack.unpackb(bytes.fromhex(vector["frames"][1]))
    header["id"] = header["id"].hex()
    assert len(list(validator("request").iter_errors(header))) == 1


@pytest.mark.parametrize("kind", STRUCTS)
def test_schema_and_struct_agree(kind: str) -> None:
    (generated,), components = msgspec.json.schema_components([STRUCTS[kind]])
    assert facts(REGISTRY.contents(f"gpu-server/{kind}.json")) == facts(generated, {"$defs": components})


def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(REGISTRY.contents(f"gpu-server/{kind}.json"), registry=REGISTRY)
