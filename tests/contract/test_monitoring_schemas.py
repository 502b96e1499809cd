"""`history` and `report` follow their schemas, and the schemas follow the structs."""

import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from schema_facts import REGISTRY, facts

from gpu_server.wire.monitoring import (
    SECONDS,
    Buckets,
    History,
    Point,
    Report,
    RouteReport,
    history_from_json,
    report_from_json,
    to_json,
)

BUCKETS = Buckets((1,) + (0,) * len(SECONDS), 0.5)
HISTORY = History(state="ready", every_s=1.0, points=(Point(number=1, at=1.5, requests=3.0),))
REPORT = Report(
    worker="0" * 32, number=1, routes={"/embed": RouteReport({"200": 1}, BUCKETS)}, tokenize={"m": BUCKETS}
)


@pytest.mark.parametrize(("name", "document"), [("history", HISTORY), ("report", REPORT)])
def test_a_document_follows_its_schema_and_the_schema_the_struct(name: str, document: Any) -> None:
    schema = REGISTRY.contents(f"gpu-server/{name}.json")
    Draft202012Validator(schema, registry=REGISTRY).validate(json.loads(to_json(document)))
    (ref,), components = msgspec.json.schema_components([type(document)])
    if name == "history":
        for component in components.values():
            component["required"] = list(component["properties"])
    assert facts(schema) == facts(ref, {"$defs": components})


def test_documents_decode_to_themselves() -> None:
    assert history_from_json(to_json(HISTORY)) == HISTORY
    assert report_from_json(to_json(REPORT)) == REPORT


@pytest.mark.parametrize(
    "change",
    [
        {"worker": "w"},
        {"worker": "0" * 32 + "\n"},
        {"number": 0},
        {"in_flight": -1},
        {"surprise": 1},
        {"routes": {"/embed": {"statuses": {"2000": 1}, "duration": msgspec.to_builtins(BUCKETS)}}},
        {"routes": {"/embed": {"statuses": {"200\n": 1}, "duration": msgspec.to_builtins(BUCKETS)}}},
        {"tokenize": {"m": {"counts": [1, 2], "total": 0.0}}},
    ],
)
def test_a_report_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        report_from_json(msgspec.json.encode(msgspec.to_builtins(REPORT) | change))
