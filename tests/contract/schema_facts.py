"""JSON Schemas of proto/schema, and what of a schema must agree with one made from a msgspec struct."""

import json
from pathlib import Path
from typing import Any

from referencing import Registry

FOLDER = Path(__file__).parents[2] / "proto" / "schema"
SCHEMAS = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]
REGISTRY: Registry[Any] = Registry().with_contents((schema["$id"], schema) for schema in SCHEMAS)
BOUNDS = ("minimum", "maximum", "minItems", "maxItems", "maxProperties")


def facts(schema: dict[str, Any], root: dict[str, Any] | None = None) -> dict[str, Any]:
    """Types, allowed values, bounds, keys and required keys, all the way down; texts and defaults do not count."""
    root = root or schema
    if "$ref" in schema:
        return facts(*_resolve(schema["$ref"], root))
    found: dict[str, Any] = {"types": _types(schema), **{k: schema[k] for k in BOUNDS if k in schema}}
    if "properties" in schema:
        found["keys"] = {name: facts(value, root) for name, value in schema["properties"].items()}
        found["required"] = sorted(schema.get("required", []))
        found["closed"] = schema.get("additionalProperties", True) is False
    elif isinstance(schema.get("additionalProperties"), dict):
        found["values"] = facts(schema["additionalProperties"], root)
    if "items" in schema:
        found["items"] = facts(schema["items"], root)
    return found


def _types(schema: dict[str, Any]) -> list[str]:
    if "anyOf" in schema:
        return sorted({t for choice in schema["anyOf"] for t in _types(choice)})
    if "enum" in schema or "const" in schema:
        return sorted(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    stated = schema["type"]
    return sorted(stated) if isinstance(stated, list) else [stated]


def _resolve(ref: str, root: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    document, _, fragment = ref.partition("#/$defs/")
    if document:
        root = REGISTRY.contents(f"gpu-server/{document}")
    return (root["$defs"][fragment] if fragment else root), root
