"""AnswerFormat: how one model writes its answers, and what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from ssd_engine.answers import harmony
from ssd_engine.answers.parsed_text import TextParser
from ssd_engine.answers.reasoning import ReasoningFormat, ReasoningParser, detect_reasoning
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import MARKERS, ToolFormat, detect_format

Tools = Sequence[Mapping[str, Any]]
ReasoningStage = Literal["ahead", "open", "over"]
"""Whether an answer may begin with reasoning, goes on with it, or has it behind it."""


@dataclass(frozen=True)
class AnswerFormat:
    """How a model writes calls and reasoning."""

    tools: ToolFormat
    reasoning: ReasoningFormat | None = None
    """None: it does not reason apart from its answers."""

    @classmethod
    def detect(cls, chat_template: str | None) -> Self:
        """What a chat template speaks of."""
        return cls(detect_format(chat_template), detect_reasoning(chat_template))

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """What `record` has told."""
        reasoning = record["reasoning"]
        return cls(ToolFormat(record["tools"]), None if reasoning is None else ReasoningFormat(reasoning))

    def record(self) -> dict[str, str | None]:
        """For a client that is to read answers itself."""
        return {"tools": self.tools.value, "reasoning": self.reasoning.value if self.reasoning else None}

    def visible_tokens(self, *, has_tools: bool) -> tuple[str, ...]:
        """Control tokens that decoding has to leave in the text for the parser."""
        if self.reasoning is ReasoningFormat.HARMONY:
            return harmony.MARKERS
        return (*(MARKERS[self.tools] if has_tools else ()), *(self.reasoning.tags if self.reasoning else ()))

    def reasoning_stage(self, prompt: str, continued: str | None) -> ReasoningStage:
        """How far the reasoning is as the answer begins.

        Args:
            prompt: what the prompt ends with.
            continued: the assistant's message that the answer goes on from; None: it begins anew.
        """
        if self.reasoning is None:
            return "over"
        opening, closing = self.reasoning.tags
        if continued is not None:
            return "open" if continued.rfind(opening) > continued.rfind(closing) else "over"
        # Of the prompt its end alone: further up a user may have written anything.
        prompt = prompt.rstrip()
        return "open" if prompt.endswith(opening) else "over" if prompt.endswith(closing) else "ahead"

    def parser(self, tools: Tools, stage: ReasoningStage) -> TextParser | None:
        """What reads one answer to a request with these tools on offer; None: all of it is text."""
        schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        if self.reasoning is ReasoningFormat.HARMONY:
            return harmony.HarmonyParser(schemas, is_text=stage == "over")
        calls = ToolCallParser(self.tools, schemas) if tools else None
        if self.reasoning is None or stage == "over":
            return calls
        return ReasoningParser(self.reasoning, calls, is_open=stage == "open")
