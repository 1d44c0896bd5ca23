"""Tool calls in a server's answers, told from text as the embedded engine tells them.

A tool parser of vLLM 0.32.0 (tool_parsers/abstract_tool_parser.py). `engine_based_streaming` is what makes vLLM call
`finish_streaming` at the end of a stream (parser/abstract_parser.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.tool_parsers.abstract_tool_parser import ToolParser

from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat, detect_format

_NO_SPECIAL_TOKENS = (ToolFormat.HERMES, ToolFormat.QWEN3_CODER, ToolFormat.GEMMA3)
"""Formats whose markup is text, or tokens that are decoded like text."""


class SSDToolParser(ToolParser):
    """Reads calls in the model family's own format, with or without its markup."""

    supports_required_and_named = False  # these too are written in the model's own format
    engine_based_streaming = True

    def __init__(self, tokenizer: Any, tools: list[Any] | None = None) -> None:
        super().__init__(tokenizer, tools)
        self._format = detect_format(getattr(tokenizer, "chat_template", None))
        self._schemas = {tool.function.name: tool.function.parameters or {} for tool in self.tools}
        self._stream = ToolCallParser(self._format, self._schemas)
        self._num_streamed = 0

    def adjust_request(self, request: Any) -> Any:
        """Keeps the markup of formats in which it is made of special tokens."""
        if request.tools and self._format not in _NO_SPECIAL_TOKENS:
            request.skip_special_tokens = False
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """The calls of a whole answer."""
        if not self._schemas:
            return ExtractedToolCallInformation(tools_called=False, tool_calls=[], content=model_output)
        parser = ToolCallParser(self._format, self._schemas)
        parsed = parser.feed(model_output) + parser.finish()
        calls = [
            ToolCall(
                id=call.id, type="function", function=FunctionCall(name=call.name, arguments=_text(call.arguments))
            )
            for call in parsed.tool_calls
        ]
        return ExtractedToolCallInformation(tools_called=bool(calls), tool_calls=calls, content=_content(parsed))

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """What the newest tokens add: text, calls, or nothing yet."""
        if not self._schemas:  # nothing that the answer says can be a call
            return DeltaMessage(content=delta_text) if delta_text else None
        return self._delta(self._stream.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back, at the end of the answer."""
        return self._delta(self._stream.finish())

    def _delta(self, parsed: ParsedText) -> DeltaMessage | None:
        content = _content(parsed)
        if not content and not parsed.tool_calls:
            return None
        first = self._num_streamed
        self._num_streamed += len(parsed.tool_calls)
        calls = [
            DeltaToolCall(
                index=index,
                id=call.id,
                type="function",
                function=DeltaFunctionCall(name=call.name, arguments=_text(call.arguments)),
            )
            for index, call in enumerate(parsed.tool_calls, first)
        ]
        return DeltaMessage(content=content, tool_calls=calls) if calls else DeltaMessage(content=content)


def _content(parsed: ParsedText) -> str | None:
    """The text, and what began as a call and is none: a client is to see it."""
    return parsed.text + "".join(call.text for call in parsed.invalid_tool_calls) or None


def _text(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)
