"""What became certain of an answer with some more of its text, and what reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ssd_engine.answers.result import InvalidToolCall, ToolCall


@dataclass(frozen=True)
class ParsedText:
    """What became certain: ordinary text, calls that are complete, and reasoning."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    reasoning: str = ""

    def __add__(self, later: ParsedText) -> ParsedText:
        return ParsedText(
            self.text + later.text,
            self.tool_calls + later.tool_calls,
            self.invalid_tool_calls + later.invalid_tool_calls,
            self.reasoning + later.reasoning,
        )


class TextParser(Protocol):
    """Reads one answer's text piece by piece; what comes out depends on the text alone, never on the pieces."""

    @property
    def spans(self) -> Sequence[tuple[int, int]]:
        """Where in the answer's text reasoning stands, from a character to the one behind its last."""

    def feed(self, text: str) -> ParsedText:
        """What became certain with the next piece."""

    def finish(self) -> ParsedText:
        """What was held back, at the end of the answer."""
