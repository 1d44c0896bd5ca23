"""JSON schemas of pydantic classes, as both frameworks' tools and answers need them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def json_schema_of_model(model: type[BaseModel]) -> dict[str, Any]:
    """Pydantic's schema, an object at its root; of a class that holds itself pydantic makes a reference of the root."""
    schema = model.model_json_schema()
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    return {**schema["$defs"][name], "$defs": schema["$defs"]} if name else schema


def is_recursive(schema: Mapping[str, Any]) -> bool:
    """Whether some definition of a schema holds itself, so that references cannot be written out."""
    definitions = schema.get("$defs", {})
    reached = {name: set(_references(described)) for name, described in definitions.items()}
    for _ in reached:
        for names in reached.values():
            names |= {further for name in names for further in reached.get(name, ())}
    return any(name in names for name, names in reached.items())


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for item in schema for name in _references(item)]
    if not isinstance(schema, Mapping):
        return []
    own = [schema["$ref"].removeprefix("#/$defs/")] if isinstance(schema.get("$ref"), str) else []
    return own + [name for value in schema.values() for name in _references(value)]
