"""Brackets: follows JSON while it is written, to where it is closed."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BRACKET = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_MOST_CLOSINGS = 32
"""Times that it is told of brackets that were closed."""


class Brackets:
    """Follows the brackets of JSON, piece by piece, to where they are all closed, and to markers that close calls."""

    def __init__(self, closings: Sequence[str] = ()) -> None:
        self._closings = closings
        self._tail = ""
        """The end of the text so far, in which a marker may have begun."""
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self._num_told = 0

    def feed(self, text: str) -> bool:
        """Whether they were closed within `text`. In what is no JSON that may be often; it is told some times only."""
        has_closed = self._closes(text)
        for match in _BRACKET.finditer(text, self._is_escaped):
            mark = match[0]
            if mark[0] == "\\":
                continue
            if mark == '"':
                self._is_in_string = not self._is_in_string
            elif not self._is_in_string:
                self._depth = max(self._depth + (1 if mark in "{[" else -1), 0)
                has_closed = has_closed or self._depth == 0
        if text:
            unescaped = text[self._is_escaped :]
            self._is_escaped = (len(unescaped) - len(unescaped.rstrip("\\"))) % 2 == 1
        self._num_told += has_closed
        return has_closed and self._num_told <= _MOST_CLOSINGS

    def _closes(self, text: str) -> bool:
        """Whether a closing marker came to its end within `text`."""
        if not self._closings:
            return False
        seen = self._tail + text
        new = len(self._tail)
        self._tail = seen[max(0, len(seen) + 1 - max(map(len, self._closings))) :]
        return any(seen.find(closing, max(0, new + 1 - len(closing))) >= 0 for closing in self._closings)
