"""Calls as Qwen3-Coder writes them: `<function=name>`, and a `<parameter=...>` for each argument, its value as text.

vLLM reads the same (tool_parsers/qwen3coder_tool_parser.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ssd_engine.answers.blanks import BLANKS, skip
from ssd_engine.answers.formats.body import BrokenCallError, ReadCall, Schemas, begins_with
from ssd_engine.answers.formats.typed_values import value_of

_FUNCTION = "<function="
_PARAMETER = "<parameter="
_END = "</function>"
_NAME = re.compile(r"[^<>\n]*")
_VALUE_END = re.compile(r"\n?</parameter>|\n<parameter=([^<>\n]*)>|\n</function>")


class XmlBody:
    """`<function=name>`, `<parameter=key>`, a value, `</parameter>`, ..., `</function>`."""

    def __init__(self, closing: str) -> None:
        """`closing`: the marker behind the last call."""
        self._closing = closing

    def begins(self, text: str, start: int) -> bool | None:
        """Where the tag of a function begins."""
        return begins_with(text, start, _FUNCTION)

    def read(self, text: str, schemas: Schemas) -> ReadCall:
        """The call that `text` begins with."""
        if not text.startswith(_FUNCTION):
            raise BrokenCallError(f"Expecting {_FUNCTION}...>", 0)
        name, place = _name(text, len(_FUNCTION), None)
        schema = schemas.get(name, {})
        properties = schema.get("properties")
        described = properties if isinstance(properties, dict) else {}
        arguments: dict[str, Any] = {}
        while True:
            place = skip(text, place, BLANKS)
            if text.startswith(_END, place):
                return ReadCall.of(name, arguments, place + len(_END))
            if text.startswith(self._closing, place):
                return ReadCall.of(name, arguments, place)
            if not text.startswith(_PARAMETER, place):
                raise self._misplaced(text, place, name)
            key, start = _name(text, place + len(_PARAMETER), name)
            end, place = self._value_end(text, start, described.keys() - arguments.keys() - {key}, name)
            value = text[start:end].removeprefix("\n")
            arguments[key] = value_of(value, described.get(key), schema)

    def _misplaced(self, text: str, place: int, name: str) -> BrokenCallError:
        tags = (_PARAMETER, _END, self._closing)
        if _may_be(text, place, tags):
            return BrokenCallError("the answer ended within this call", len(text), name=name)
        return BrokenCallError(f"Expecting {_PARAMETER}...> or {_END}: char {place}", place, name=name)

    def _value_end(self, text: str, start: int, missing: Any, name: str) -> tuple[int, int]:
        """Where a value ends, and where what follows it begins.

        A value may hold tags: it ends where one stands that can only be the call's own. `</parameter>` may be left out
        before one of the `missing` arguments, and before the call's end.
        """
        for found in _VALUE_END.finditer(text, start):
            tag = found[0].lstrip("\n")
            if found[1] is not None:
                if found[1] in missing:
                    return found.start(), found.start()
                continue
            follows = (_FUNCTION, self._closing) if tag == _END else (_PARAMETER, _END, self._closing)
            behind = skip(text, found.end(), BLANKS)
            if text.startswith(follows, behind):
                return found.start(), found.start() if tag == _END else found.end()
            if _may_be(text, behind, follows):
                break
        raise BrokenCallError("the answer ended within this call", len(text), is_open=True, name=name)


def _name(text: str, start: int, tool: str | None) -> tuple[str, int]:
    """The name in a tag of a call of `tool`, and where the tag ends."""
    found = _NAME.match(text, start)
    assert found is not None  # it may be empty
    if not text.startswith(">", found.end()):
        reason = "the answer ended within this call" if found.end() == len(text) else "Expecting >"
        raise BrokenCallError(f"{reason}: char {found.end()}", found.end(), name=tool)
    return found[0].strip(), found.end() + 1


def _may_be(text: str, place: int, tags: Sequence[str]) -> bool:
    """Whether the text ends in the unfinished beginning of one of `tags`."""
    return any(tag.startswith(text[place:]) for tag in tags)
