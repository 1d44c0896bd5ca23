"""Calls and reasoning in a server's answers, told from text as the embedded engine tells them.

A parser of vLLM 0.32.0 (parser/abstract_parser.py): one for each answer, given every piece of its text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall, FunctionCall
from vllm.parser.abstract_parser import Parser
from vllm.tool_parsers.abstract_tool_parser import ToolParser

from ssd_engine.answers.call_json import before_repetition
from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.reasoning import num_reasoning_tokens

if TYPE_CHECKING:
    from ssd_engine.answers.parsed_text import TextParser
    from ssd_engine.answers.result import ToolCall
    from ssd_engine.backends.vllm.chat_request import ChatRequest
    from ssd_engine.serving.intake import Intake


class SSDToolParser(ToolParser):
    """The name under which vLLM is told at its start that there are calls; `SSDParser` reads them."""

    supports_required_and_named = False  # these too are written in the model's own format


class SSDParser(Parser):
    """Reads one answer to one request."""

    tool_parser_cls = SSDToolParser

    def __init__(self, request: ChatRequest, intake: Intake) -> None:
        # vLLM's own makes the parsers of its two kinds, of which there are none here.
        self._reasoning_parser = self._tool_parser = None
        self._request = request
        self._intake = intake
        self._tools = request._tools if request.offers_tools else []
        self._parser: TextParser | None = None
        self._calls: list[ToolCall] = []
        self._has_begun = False

    def is_reasoning_end(self, input_ids: list[int]) -> bool:
        """Grammars here say themselves where reasoning ends: they hold from the first token."""
        return True

    def parse(self, model_output: str, *_: Any, **__: Any) -> tuple[str | None, str | None, list[FunctionCall] | None]:
        """The reasoning, the text and the calls of a whole answer."""
        parsed = self._read(model_output, finished=True)
        calls = [
            FunctionCall(id=call.id, name=call.name, arguments=_text(call.arguments)) for call in parsed.tool_calls
        ]
        return parsed.reasoning or None, _content(parsed), calls or None

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | None:
        """What the newest tokens add: reasoning, text, calls, or nothing yet."""
        parsed = self._read(delta_text, finished=finished)
        content, first = _content(parsed), len(self._calls) - len(parsed.tool_calls)
        reasoning = parsed.reasoning if self._request.include_reasoning else ""
        calls = [
            DeltaToolCall(
                index=index,
                id=call.id,
                type="function",
                function=DeltaFunctionCall(name=call.name, arguments=_text(call.arguments)),
            )
            for index, call in enumerate(parsed.tool_calls, first)
        ]
        if not (content or calls or reasoning):
            return None
        # The second is the name that other servers' clients know.
        thought = {"reasoning": reasoning, "reasoning_content": reasoning} if reasoning else {}
        return DeltaMessage(content=content, **({"tool_calls": calls} if calls else {}), **thought)

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """How many of the answer's tokens begin within its reasoning."""
        feed = self._intake.detokenizer(self._tools).feed
        return num_reasoning_tokens([feed(i) for i in token_ids], self._parser.spans if self._parser else ())

    def _read(self, text: str, *, finished: bool) -> ParsedText:
        if not self._has_begun:  # how far the reasoning is, is known once the prompt has been written
            self._has_begun = True
            self._parser = self._intake.format.parser(self._tools, self._request._reasoning_stage)
        if self._parser is None:
            return ParsedText(text)
        parsed = self._parser.feed(text)
        if finished:
            parsed += self._parser.finish()
        if self._request.must_call:
            parsed = replace(parsed, tool_calls=before_repetition(self._calls, parsed.tool_calls))
        self._calls += parsed.tool_calls
        return parsed


def _content(parsed: ParsedText) -> str | None:
    """The text, and what began as a call and is none: a client is to see it."""
    return parsed.text + "".join(call.text for call in parsed.invalid_tool_calls) or None


def _text(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)
