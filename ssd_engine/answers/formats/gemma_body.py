"""Calls as FunctionGemma and Gemma 4 write them: `call:name{key:value,...}`, text between marks of its own.

vLLM reads the same (tool_parsers/functiongemma_tool_parser.py, gemma4_utils.py).
"""

from __future__ import annotations

import json
import re
from typing import Any

from ssd_engine.answers.blanks import BLANKS, skip
from ssd_engine.answers.formats.body import BrokenCallError, ReadCall, Schemas, begins_with

_CALL = "call:"
_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r"[^\s:,<>{}\[\]\"]+")
_BARE = re.compile(r"[^,<{}\[\]]*")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_MOST_LEVELS = 64


class GemmaBody:
    """`call:name{key:value,...}`; `quote` is the mark before and behind text."""

    def __init__(self, quote: str) -> None:
        self._quote = quote

    def begins(self, text: str, start: int) -> bool | None:
        """Where `call:` stands."""
        return begins_with(text, start, _CALL)

    def read(self, text: str, schemas: Schemas) -> ReadCall:
        """The call that `text` begins with."""
        if not text.startswith(_CALL):
            raise BrokenCallError("Expecting call:name{...}", 0)
        name = _NAME.match(text, skip(text, len(_CALL), BLANKS))
        assert name is not None  # it may be empty
        reader = _Reader(text, self._quote, name[0])
        start = skip(text, name.end(), BLANKS)
        reader.require(start, "{")
        arguments, end = reader.mapping(start + 1, 0)
        return ReadCall.of(name[0], arguments, end)


class _Reader:
    """Reads values of one call."""

    def __init__(self, text: str, quote: str, name: str) -> None:
        self._text = text
        self._quote = quote
        self._name = name

    def require(self, place: int, character: str) -> None:
        if not self._text.startswith(character, place):
            raise self._broken(place, f"Expecting {character}")

    def mapping(self, place: int, level: int) -> tuple[dict[str, Any], int]:
        """`key:value,...}` at `place`, and where it ends."""
        found: dict[str, Any] = {}
        while True:
            place = skip(self._text, place, BLANKS + ",")
            if self._text.startswith("}", place):
                return found, place + 1
            key, place = self._key(place)
            place = skip(self._text, place, BLANKS)
            self.require(place, ":")
            found[key], place = self._value(place + 1, level)
            place = self._separator(place, "}")

    def _sequence(self, place: int, level: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while True:
            place = skip(self._text, place, BLANKS + ",")
            if self._text.startswith("]", place):
                return found, place + 1
            value, place = self._value(place, level)
            found.append(value)
            place = self._separator(place, "]")

    def _separator(self, place: int, closing: str) -> int:
        place = skip(self._text, place, BLANKS)
        if not self._text.startswith((",", closing), place):
            raise self._broken(place, f"Expecting , or {closing}")
        return place

    def _key(self, place: int) -> tuple[str, int]:
        for quote in (self._quote, '"'):
            if self._text.startswith(quote, place):
                return self._quoted(place, quote)
        found = _KEY.match(self._text, place)
        if found is None:
            raise self._broken(place, "Expecting a name")
        return found[0], found.end()

    def _value(self, place: int, level: int) -> tuple[Any, int]:
        place = skip(self._text, place, BLANKS)
        if level == _MOST_LEVELS:
            raise self._broken(place, "Too many levels")
        for quote in (self._quote, '"'):
            if self._text.startswith(quote, place):
                return self._quoted(place, quote)
        if self._text.startswith("{", place):
            return self.mapping(place + 1, level + 1)
        if self._text.startswith("[", place):
            return self._sequence(place + 1, level + 1)
        found = _BARE.match(self._text, place)
        assert found is not None  # it may be empty
        if not found[0].strip() or found.end() == len(self._text):
            raise self._broken(found.end(), "Expecting a value")
        return _bare(found[0].strip()), found.end()

    def _quoted(self, place: int, quote: str) -> tuple[str, int]:
        start = place + len(quote)
        end = self._text.find(quote, start)
        if end < 0:
            raise BrokenCallError("the answer ended within this call", len(self._text), is_open=True, name=self._name)
        return self._text[start:end], end + len(quote)

    def _broken(self, place: int, reason: str) -> BrokenCallError:
        if self._quote.startswith(self._text[place:]):  # also at the text's end
            return BrokenCallError("the answer ended within this call", len(self._text), name=self._name)
        return BrokenCallError(f"{reason}: char {place}", place, name=self._name)


def _bare(text: str) -> Any:
    """A value without quotes: a number, a word of JSON or Python, or text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
