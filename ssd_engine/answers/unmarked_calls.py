"""Calls as JSON without the markup of the model's own format."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Protocol

from ssd_engine.answers.blanks import BLANKS, skip
from ssd_engine.answers.call_json import (
    call_from,
    decode,
    invalid_call,
    is_open_string,
    may_go_on,
    written_calls,
)
from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.result import ToolCall

_BLANK = r"[ \t\r\n]*"
_HEAD = re.compile(
    _BLANK.join(["", r"(?:\[[ \t\r\n]*)*\{", '"name"', ":", r'"([^"\\]+)"', ",", '"(?:arguments|parameters)"', ":"])
)
"""What a call without markup begins with."""


class Unmarked(Protocol):
    """Reads calls without markup in one notation."""

    line: re.Pattern[str]
    """What stands before a call that begins a line."""

    def begins(self, text: str, start: int) -> bool | None:
        """Whether text at `start` may be calls; None where the text ends before that is known."""

    def read(self, text: str, start: int, closing: str, *, final: bool) -> tuple[ParsedText | None, int]:
        """The calls at `start`, and where they end; nothing for other text, None to wait.

        `closing` ends what they are enclosed in. Calls that break off are calls, invalid ones.
        """

    def partial_line(self, text: str) -> int:
        """Where the last line starts, if it is the unfinished beginning of a call; else the text's end."""


class UnmarkedCalls:
    """Reads JSON that calls some of a request's tools."""

    line = re.compile(r"(?<=\n)[ \t]*(?=[{\[])")

    def __init__(self, tool_names: Collection[str]) -> None:
        self.tool_names = frozenset(tool_names)

    def begins(self, text: str, start: int) -> bool | None:
        """Whether it is JSON, an object or a list."""
        return text.startswith(("{", "["), start)

    def partial_line(self, text: str) -> int:
        """One character makes it certain."""
        return len(text)

    def read(self, text: str, start: int, closing: str, *, final: bool) -> tuple[ParsedText | None, int]:
        """The calls without markup in the JSON at `start`, and where they end; nothing for other JSON, None to wait.

        JSON that breaks off is a call, an invalid one, where it begins like a call or where whole calls precede it.
        """
        calls: tuple[ToolCall, ...] = ()
        end = start
        if not self.tool_names:
            return ParsedText(), end
        while text.startswith(("{", "["), end):
            try:
                value, value_end = decode(text, end)
            except json.JSONDecodeError as error:
                if not final and may_go_on(error):
                    return None, start
                return self._read_broken(text, start, end, calls, error, closing, final=final)
            found = [self._call(item) for item in written_calls(value)]
            if not found or not all(found):
                return ParsedText(), start
            calls += tuple(call for call in found if call is not None)
            end = skip(text, value_end, BLANKS + ";")
        return ParsedText("", calls), end

    def _read_broken(
        self,
        text: str,
        start: int,
        end: int,
        calls: tuple[ToolCall, ...],
        error: json.JSONDecodeError,
        closing: str,
        *,
        final: bool,
    ) -> tuple[ParsedText | None, int]:
        """`read` where the JSON at `end`, behind whole `calls`, breaks off."""
        head = _HEAD.match(text, end)
        name = head[1] if head and head[1] in self.tool_names else None
        if not calls and name is None:
            return ParsedText(), start
        stop = text.find(closing, end) if closing else -1
        if stop < 0 and not final:
            return None, start
        broken = text[end : stop if stop >= 0 else None]
        is_cut = is_open_string(error) or error.pos >= end + len(broken.rstrip())
        reason = "the answer ended within this call" if is_cut else str(error)
        return ParsedText("", calls, (invalid_call(broken, reason, name),)), end + len(broken)

    def _call(self, value: Any) -> ToolCall | None:
        """`value` as a call of an offered tool, if it is one."""
        if not isinstance(value, dict) or not {"arguments", "parameters"} & value.keys():
            return None
        call = call_from(value)
        return call if isinstance(call, ToolCall) and call.name in self.tool_names else None
