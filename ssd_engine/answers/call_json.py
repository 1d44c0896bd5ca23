"""The JSON of tool calls: a call, whatever a model made of its JSON, or why it is none."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ssd_engine.answers.result import InvalidToolCall, ToolCall

_NAME = re.compile(r'[\s\[]*\{\s*"name"\s*:\s*"([^"\\]+)"')
"""What a call in JSON begins with."""
_CERTAIN = 16
"""Characters behind an error in JSON that make it one for certain, not a literal or an escape still being written."""


def call_from(value: Mapping[str, Any]) -> ToolCall | str:
    """The call that a JSON object stands for, or why it stands for none."""
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return f'the call names no tool: "name" is {json.dumps(name)}'
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments, _ = decode_object(arguments.strip(), 0)
        except json.JSONDecodeError as error:
            return f"the arguments of {name!r} are a string that is no JSON object: {error}"
    if arguments in (None, ""):
        arguments = {}
    if not isinstance(arguments, dict):
        return f"the arguments of {name!r} are not a JSON object but {json.dumps(arguments)}"
    return ToolCall(_new_id(), name, arguments)


def written_calls(value: Any) -> list[Any]:
    """What may be calls in some JSON: itself, the items of a list, and what OpenAI's wrappings hold."""
    if isinstance(value, list):
        return [call for item in value for call in written_calls(item)]
    match value:
        case {"tool_calls": [*calls]}:
            return written_calls(calls)
        case {"function": {"name": str()} as function}:
            return [function]
    return [value]


def before_repetition(made: Sequence[ToolCall], calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """The calls up to one that an answer has made already, among `made` or before it.

    Where calls have to come, small models go on with more of the same, which agents then run again and again.
    """
    seen = [(call.name, call.arguments) for call in made]
    for place, call in enumerate(calls):
        if (call.name, call.arguments) in seen:
            return tuple(calls[:place])
        seen.append((call.name, call.arguments))
    return tuple(calls)


def invalid_call(text: str, error: str, name: Any) -> InvalidToolCall:
    """A call of which `text` is all there is; `name` is the tool's, where it is one; else what the text begins with."""
    if not isinstance(name, str) or not name:
        begun = _NAME.match(text)
        name = begun[1] if begun else None
    return InvalidToolCall(_new_id(), name, text.strip(), error)


def decode_object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """`decode` where only an object will do."""
    if not text.startswith("{", start):
        raise json.JSONDecodeError("Expecting a JSON object", text, start)
    return decode(text, start)


def decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON object or array at `start` and where it ends; raises `json.JSONDecodeError`.

    Line breaks inside strings are let through: models write code into arguments without escaping them.
    """
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, start)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # NaN and half characters are no JSON
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:  # also thousands of brackets, and numbers of thousands of digits
        raise json.JSONDecodeError(str(error), text, start) from error
    return value, end


def is_open_string(error: json.JSONDecodeError) -> bool:
    """Whether the text ended within a string."""
    return error.msg.startswith("Unterminated string")


def may_go_on(error: json.JSONDecodeError) -> bool:
    """Whether more text could still make JSON of it."""
    return is_open_string(error) or len(error.doc[error.pos :].rstrip()) < _CERTAIN


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"
