"""JSON schemas as the grammar engine follows them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from ssd_engine.errors import InvalidRequestError

_logger = logging.getLogger(__name__)

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes and models are used to; where no blanks are free, more tokens are forced."""

LOOSE_STYLE = {"whitespace_flexible": True, "whitespace_pattern": r"[ \t\r\n]{0,32}"}
"""As models may write it that were not told to begin a call; but no blanks without end."""

_MOST_REMAINDERS = 100_000
"""Of the multiples that one schema asks for together: about a tenth of a second."""


def json_rule(schema: Mapping[str, Any], *, lenient: bool, style: Mapping[str, Any] = JSON_STYLE) -> str:
    """What stands behind `%json` in a rule for values that follow `schema`.

    Raises:
        InvalidRequestError: it is no schema, or has what cannot be enforced and is not passed over (`lenient`).
    """
    own_options = schema.get("x-guidance", {})
    if not isinstance(own_options, Mapping):
        raise InvalidRequestError(f"the schema has x-guidance={own_options!r}; give an object of options, or none")
    schema = _countable(_rewritten(schema, _with_named_keys), lenient=lenient)
    if lenient:
        schema = _rewritten(schema, _without_foreign_patterns)
    closed = schema if _combines(schema) else _closed(schema)
    try:
        return json.dumps({**closed, "x-guidance": {**style, "lenient": lenient, **own_options}})
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"the schema cannot be written as JSON: {error}") from error


def _with_named_keys(described: dict[str, Any]) -> dict[str, Any]:
    """An object whose keys are of a list, as a dict's are with an Enum, has them as properties; it needs none."""
    match described:
        case {"propertyNames": {"enum": [*names]}, "additionalProperties": values} if "properties" not in described:
            rest = {key: value for key, value in described.items() if key != "propertyNames"}
            return {**rest, "properties": dict.fromkeys(names, values), "additionalProperties": False}
    return described


def _without_foreign_patterns(described: dict[str, Any]) -> dict[str, Any]:
    """Without a pattern of other dialects of regular expressions: word boundaries, lookaround, references."""
    pattern = described.get("pattern")
    if not isinstance(pattern, str) or _is_compilable(pattern):
        return described
    warn_of(f"pattern {pattern!r}")
    return {key: value for key, value in described.items() if key != "pattern"}


@lru_cache(maxsize=1024)
def _is_compilable(pattern: str) -> bool:
    rule = json.dumps({"type": "string", "pattern": pattern})
    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(f"start: %json {rule}"))


@lru_cache(maxsize=1024)
def warn_of(keyword: str) -> None:
    """Say once in a process that something of a schema is passed over."""
    _logger.warning(
        "%s of a schema cannot be enforced while decoding and is passed over: validate the answers, or ask for "
        "strict=True, which makes it an error",
        keyword,
    )


def _combines(schema: Any) -> bool:
    """Whether some object is described in several places: what one of them does not name, another may."""
    if isinstance(schema, list):
        return any(map(_combines, schema))
    if not isinstance(schema, Mapping):
        return False
    others = schema.keys() & {"anyOf", "oneOf", "if", "not", "$ref", "dependentSchemas"}
    return "allOf" in schema or bool("properties" in schema and others) or any(map(_combines, schema.values()))


def _countable(schema: Any, *, lenient: bool) -> Any:
    """A schema whose numbers have few remainders: a state is made for each, which else takes minutes, or for ever.

    Raises:
        InvalidRequestError: they have too many, and what cannot be enforced is not passed over (`lenient`).
    """
    steps: list[int] = []

    def note(described: dict[str, Any]) -> dict[str, Any]:
        step = described.get("multipleOf")
        if isinstance(step, float) and math.isfinite(step):
            _, digits, exponent = Decimal(str(step)).as_tuple()
            step = int(Decimal((0, digits, max(int(exponent), 0))))
        if isinstance(step, int):
            steps.append(step or 1)
        return described

    _rewritten(schema, note)
    if math.lcm(*steps) <= _MOST_REMAINDERS:
        return schema
    if not lenient:
        raise InvalidRequestError(
            f"the schema's multipleOf have more than {_MOST_REMAINDERS} remainders together, too many to enforce; give "
            "smaller ones, or let them be passed over"
        )
    return _rewritten(schema, lambda described: {k: v for k, v in described.items() if k != "multipleOf"})


def _closed(schema: Any) -> Any:
    """A schema whose objects have no properties but those it names, unless it says that they may."""

    def close(described: dict[str, Any]) -> dict[str, Any]:
        if "properties" in described:
            described.setdefault("additionalProperties", False)
        return described

    return _rewritten(schema, close)


def _rewritten(schema: Any, rewrite: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A schema with `rewrite` done to each part that describes something."""
    if isinstance(schema, list):
        return [_rewritten(item, rewrite) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return rewrite({key: _rewritten_keyword(key, value, rewrite) for key, value in schema.items()})


def _rewritten_keyword(key: str, value: Any, rewrite: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    if key in ("enum", "const", "default", "examples"):
        return value
    if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
        if not isinstance(value, Mapping):
            return value
        return {name: _rewritten(described, rewrite) for name, described in value.items()}
    return _rewritten(value, rewrite)
