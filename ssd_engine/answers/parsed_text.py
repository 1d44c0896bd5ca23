"""What became certain of an answer with some more of its text."""

from __future__ import annotations

from dataclasses import dataclass

from ssd_engine.answers.result import InvalidToolCall, ToolCall


@dataclass(frozen=True)
class ParsedText:
    """What became certain: ordinary text, and calls that are complete."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()

    def __add__(self, later: ParsedText) -> ParsedText:
        return ParsedText(
            self.text + later.text,
            self.tool_calls + later.tool_calls,
            self.invalid_tool_calls + later.invalid_tool_calls,
        )
