"""The documents of `hello` and `status` follow their schemas, and the schemas follow the structs."""

import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from schema_facts import REGISTRY, SCHEMAS, facts

from gpu_server.wire import Limits
from gpu_server.wire.documents import (
    EngineStatus,
    Hello,
    InputInfo,
    ModelInfo,
    QueueStatus,
    Status,
    TextInfo,
    from_json,
    to_json,
)

TEXT = TextInfo(
    digest="0" * 64, max_length=512, vocab_size=30522, prompts={"query": "q: "}, default_prompt="query"
)
EMBEDDING = ModelInfo(
    name="bge",
    version="5f",
    kind="embedding",
    inputs=(InputInfo("input_ids", "i32", (-1,)),),
    cost="input_ids",
    text=TEXT,
    dimensions=384,
    pooling="cls",
    normalize=True,
    graphs=(16, 32),
)
CUSTOM = ModelInfo(
    name="tagger", padded=True, params={"top": 5, "lang": None}, cost=2, inputs=(InputInfo("image", "bytes"),)
)
CLASSIFIER = ModelInfo(
    name="mood", kind="classifier", text=TEXT, labels=("sad", "glad"), activation="softmax", outputs=("x",)
)
HELLO = Hello(
    version="1.0",
    state="ready",
    limits=Limits(),
    default_deadline_ms=30_000,
    models=(EMBEDDING, CUSTOM, CLASSIFIER),
)
STATUS = Status(
    version="1.0",
    pid=7,
    endpoint="ipc:///run/gpu-server/s",
    state="degraded",
    engines=(EngineStatus(pid=8, device="cuda:0", state="warming", progress=0.5),),
    models=(EMBEDDING,),
    queue=QueueStatus(items=3),
    counters={"requests": 12},
)
DOCUMENTS = {"hello": HELLO, "status": STATUS, "model": CUSTOM}
# Structs that leave keys at their default out; all others always send every key.
SPARSE = {"ModelInfo", "TextInfo", "InputInfo"}


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: s["$id"])
def test_schema_is_a_schema(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_encoded_document_follows_its_schema_and_decodes_to_itself(name: str) -> None:
    document = DOCUMENTS[name]
    encoded = to_json(document)
    validator(name).validate(json.loads(encoded))
    assert from_json(type(document), encoded) == document


@pytest.mark.parametrize("name", ["hello", "status"])
def test_smallest_document_follows_its_schema(name: str) -> None:
    smallest = (
        Hello(version="1", state="starting", limits=Limits(), default_deadline_ms=1, models=())
        if name == "hello"
        else Status(version="1", pid=1, endpoint="", state="starting", queue=QueueStatus())
    )
    validator(name).validate(json.loads(to_json(smallest)))


@pytest.mark.parametrize(("name", "key"), [("hello", "limits"), ("status", "queue"), ("model", "name")])
def test_schema_refuses_a_document_without_a_required_key(name: str, key: str) -> None:
    document = json.loads(to_json(DOCUMENTS[name]))
    del document[key]
    assert [error.validator for error in validator(name).iter_errors(document)] == ["required"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_schema_and_struct_agree(name: str) -> None:
    assert facts(REGISTRY.contents(f"gpu-server/{name}.json")) == facts(*generated(type(DOCUMENTS[name])))


def test_stated_defaults_are_those_of_the_structs() -> None:
    schema = REGISTRY.contents("gpu-server/model.json")
    _, components = msgspec.json.schema_components([ModelInfo])
    for struct, stated in (
        (ModelInfo, schema),
        (TextInfo, schema["$defs"]["text"]),
        (InputInfo, schema["$defs"]["input"]),
    ):
        properties = components[struct.__name__]["properties"]
        coded = {k: v["default"] for k, v in properties.items() if v.get("default") is not None}
        written = {k: v["default"] for k, v in stated["properties"].items() if "default" in v}
        assert written == json.loads(json.dumps(coded))


def generated(struct: type[msgspec.Struct]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of what `struct` sends: every key, unless it leaves defaults out; an absent key is never null."""
    (ref,), components = msgspec.json.schema_components([struct])
    for name, component in components.items():
        if name not in SPARSE:
            component["required"] = list(component["properties"])
        for key, value in component["properties"].items():
            choices = [c for c in value.get("anyOf", []) if c != {"type": "null"}]
            if len(choices) == 1:
                component["properties"][key] = choices[0]
    return ref, {"$defs": components}


def test_sparse_structs_are_those_that_leave_defaults_out() -> None:
    structs = (Hello, Status, EngineStatus, QueueStatus, Limits, ModelInfo, TextInfo, InputInfo)
    assert {s.__name__ for s in structs if s.__struct_config__.omit_defaults} == SPARSE


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(REGISTRY.contents(f"gpu-server/{name}.json"), registry=REGISTRY)
