"""Calls in Python without the markup of the model's own format."""

from __future__ import annotations

import re
from collections.abc import Collection

from ssd_engine.answers.blanks import BLANKS, skip
from ssd_engine.answers.call_json import invalid_call
from ssd_engine.answers.formats.body import BrokenCallError
from ssd_engine.answers.formats.python_body import PythonBody
from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.result import ToolCall

_BEFORE = ("", "default_api.", "print(", "print(default_api.")
"""What Gemma writes before a name."""


class UnmarkedPython:
    """Reads Python that calls some of a request's tools: calls, or a list of them."""

    def __init__(self, tool_names: Collection[str]) -> None:
        self._heads = tuple(f"{before}{name}(" for before in _BEFORE for name in tool_names)
        heads = "|".join(map(re.escape, self._heads))
        self.line = re.compile(rf"(?<=\n)[ \t]*(?={heads})")

    def begins(self, text: str, start: int) -> bool | None:
        """Whether it is a call of an offered tool, in a list or not."""
        rest = text[skip(text, start, BLANKS + "[") :]
        return rest.startswith(self._heads) or (None if self._is_partial(rest) else False)

    def partial_line(self, text: str) -> int:
        """Where the last line starts, if it is the unfinished beginning of a call."""
        start = skip(text, text.rfind("\n") + 1, " \t")
        return start if start > text.find("\n") >= 0 and self._is_partial(text[start:]) else len(text)

    def read(self, text: str, start: int, closing: str, *, final: bool) -> tuple[ParsedText | None, int]:
        """The calls at `start`, and where they end; nothing for other Python, None to wait."""
        body = PythonBody((closing,) if closing else ())
        calls: tuple[ToolCall, ...] = ()
        end = start
        while begins := self.begins(text, end):
            place = skip(text, end, BLANKS + "[")
            try:
                read = body.read(text[place:], {})
            except BrokenCallError as broken:
                if not final and broken.at == len(text) - place:  # more text may mend it
                    return None, start
                stop = text.find(closing, place + broken.at) if closing else -1
                stop = stop if stop >= 0 else len(text)
                return ParsedText("", calls, (invalid_call(text[place:stop], str(broken), broken.name),)), stop
            if read.call is None:
                return ParsedText(), start
            calls += (read.call,)
            end = skip(text, place + read.end, BLANKS + ",;])")
        if begins is None and not final:
            return None, start
        return ParsedText("", calls), end

    def _is_partial(self, text: str) -> bool:
        return any(head.startswith(text) for head in self._heads)
