"""Text -> value, as a JSON Schema types it, for formats that write every value as text."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

_OF_TYPE = (("properties", "object"), ("items", "array"))
"""Keywords that tell the type where a schema does not name it."""
_MOST_REFERENCES = 16
"""References that are followed from one to the next; more go round in a circle."""


def value_of(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """The value that `text` stands for where `schema`, a part of `root`, describes it.

    Of several types the first counts that the text can be, and null before all. Text that is none of them stays text,
    and so does text that nothing is said of.
    """
    described = list(_described(schema, root, _MOST_REFERENCES))
    types = [each for part in described for each in _types(part)]
    if "null" in types and text.strip().lower() in ("null", "none"):
        return None
    for each in types:
        if each == "string":
            return text
        value = _literal(text.strip())
        if _is(value, each):
            return int(value) if each == "integer" else value
    return text


def may_be_text(schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether text that is no JSON can be a value."""
    types = [each for part in _described(schema, root, _MOST_REFERENCES) for each in _types(part)]
    return not types or "string" in types


def _described(schema: Any, root: Mapping[str, Any], most: int) -> Iterator[Mapping[str, Any]]:
    """The parts of a schema that describe one value: references, alternatives and additions, each by itself."""
    if not isinstance(schema, Mapping) or most == 0:
        return
    yield schema
    if isinstance(reference := schema.get("$ref"), str):
        yield from _described(referred(reference, root), root, most - 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        parts = schema.get(keyword)
        for part in parts if isinstance(parts, list) else ():
            yield from _described(part, root, most - 1)


def referred(reference: str, root: Mapping[str, Any]) -> Any:
    """What `#/$defs/...` stands for; None where it stands for nothing in `root`."""
    if not reference.startswith("#"):
        return None
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _types(schema: Mapping[str, Any]) -> list[str]:
    named = schema.get("type")
    if named is not None:
        return [str(each) for each in (named if isinstance(named, list) else [named])]
    if told := [name for keyword, name in _OF_TYPE if keyword in schema]:
        return told
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    return list(dict.fromkeys(_type_of(value) for value in values))


def _type_of(value: Any) -> str:
    names = ("null", "boolean", "integer", "number", "array", "object")
    return next((name for name in names if _is(value, name)), "string")


def _is(value: Any, name: str) -> bool:
    """Whether a value is of a type of JSON Schema."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return is_number and value == int(value)
        case "number":
            return is_number
        case "array":
            return isinstance(value, list)
    return name == "object" and isinstance(value, dict)


def _literal(text: str) -> Any:
    """What text says in JSON or as a literal of Python, which templates write too; the text where it is neither."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (json.loads, ast.literal_eval):
        try:
            written = json.dumps(read(text), allow_nan=False, ensure_ascii=False)
            written.encode()
            return json.loads(written)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return text
