"""A tool's arguments one by one, for notations that do not write them as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssd_engine.answers.formats.typed_values import referred

_MOST_REFERENCES = 16
"""References that are followed from one to the next; more go round in a circle."""


@dataclass(frozen=True)
class Parameter:
    """One argument."""

    name: str
    schema: Any
    is_required: bool


def parameters(schema: Mapping[str, Any]) -> list[Parameter] | None:
    """The arguments that a schema names; None where it names none and allows any."""
    named = schema.get("properties")
    if not isinstance(named, Mapping):
        return [] if schema.get("additionalProperties") is False else None
    required = schema.get("required")
    needed = required if isinstance(required, Sequence) else ()
    return [Parameter(str(name), each, name in needed) for name, each in named.items()]


def alternatives(schema: Any, root: Mapping[str, Any], most: int = _MOST_REFERENCES) -> Iterator[Any]:
    """The schemas of which a value follows one: a schema's references and its alternatives are resolved in `root`."""
    if isinstance(schema, Mapping) and most > 0:
        rest = {key: value for key, value in schema.items() if key not in _COMMENTS}
        match rest:
            case {"$ref": str() as reference} if len(rest) == 1 and referred(reference, root) is not None:
                yield from alternatives(referred(reference, root), root, most - 1)
                return
            case {"anyOf": [*parts]} | {"oneOf": [*parts]} | {"allOf": [*parts]} if len(rest) == 1 and (
                "allOf" not in rest or len(parts) == 1
            ):
                for part in parts:
                    yield from alternatives(part, root, most - 1)
                return
            case {"type": [*types]}:
                for each in types:
                    yield {**schema, "type": each}
                return
    yield schema


def with_definitions(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a schema by itself, with what its references stand for."""
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return {**(schema if isinstance(schema, Mapping) else {}), **definitions}


def separated(rule: str, items: Sequence[tuple[str, bool]], separator: str) -> list[str]:
    """`rule` for items in this order, a separator between two of them; each is an expression, and whether it must be.

    Two rules for each place: what may stand from there on where something stands before it, and where nothing does.
    """
    rules = [f'{rule}_more_{len(items)}: ""', f'{rule}_first_{len(items)}: ""', f"{rule}: {rule}_first_0"]
    for i, (item, is_required) in enumerate(items):
        more = f"{separator} {item}"
        rules.append(f"{rule}_more_{i}: {more if is_required else f'({more})?'} {rule}_more_{i + 1}")
        first = f"{item} {rule}_more_{i + 1}"
        rules.append(f"{rule}_first_{i}: {first}" + ("" if is_required else f" | {rule}_first_{i + 1}"))
    return rules


_COMMENTS = ("title", "description", "default", "examples", "deprecated", "$comment")
"""Keywords that constrain nothing."""
