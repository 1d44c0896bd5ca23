"""The engine's results and pieces -> LlamaIndex responses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from ssd_engine.answers.result import GenerationResult, InvalidToolCall, Piece, TokenLogprob, ToolCall
from ssd_integrations.notes import note_on, with_note


@dataclass
class Answer:
    """One answer as it grows, piece by piece, and as LlamaIndex is told of it.

    `model_name` goes into `raw`.
    """

    model_name: str
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    invalid_tool_calls: list[InvalidToolCall] = field(default_factory=list)

    def chat_response(self, result: GenerationResult) -> ChatResponse:
        """The whole answer at once."""
        self.text = result.text or note_on(result)
        self.reasoning = result.reasoning
        self._add_calls(result.tool_calls, result.invalid_tool_calls)
        return ChatResponse(
            message=self._message(),
            raw=_raw(result, self.model_name),
            logprobs=_logprobs(result.logprobs),
            additional_kwargs=_token_counts(result),
        )

    def completion_response(self, result: GenerationResult) -> CompletionResponse:
        """The whole answer at once."""
        return CompletionResponse(
            text=result.text,
            raw=_raw(result, self.model_name),
            logprobs=_logprobs(result.logprobs),
            additional_kwargs=_token_counts(result),
        )

    def add_to_chat(self, piece: Piece) -> ChatResponse | None:
        """The answer up to and with `piece`; None when the piece says nothing new."""
        piece = with_note(piece)
        self.text += piece.text
        self.reasoning += piece.reasoning
        self._add_calls(piece.tool_calls, piece.invalid_tool_calls)
        if not (piece.text or piece.reasoning or piece.tool_calls or piece.invalid_tool_calls or piece.result):
            return None
        return ChatResponse(
            message=self._message(),
            delta=piece.text,
            raw=_raw(piece.result, self.model_name),
            logprobs=_logprobs(piece.logprobs),
            # Where LlamaIndex's agents look for it.
            additional_kwargs=_token_counts(piece.result)
            | ({"thinking_delta": piece.reasoning} if piece.reasoning else {}),
        )

    def add_to_completion(self, piece: Piece) -> CompletionResponse | None:
        """The answer up to and with `piece`; None when the piece says nothing new."""
        self.text += piece.text
        if not (piece.text or piece.result):
            return None
        return CompletionResponse(
            text=self.text,
            delta=piece.text,
            raw=_raw(piece.result, self.model_name),
            logprobs=_logprobs(piece.logprobs),
            additional_kwargs=_token_counts(piece.result),
        )

    def _add_calls(self, calls: Iterable[ToolCall], invalid: Iterable[InvalidToolCall]) -> None:
        self.tool_calls += calls
        self.invalid_tool_calls += invalid

    def _message(self) -> ChatMessage:
        blocks: list[ContentBlock] = [
            ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
            for call in self.tool_calls
        ]
        if self.text or not blocks:
            blocks.insert(0, TextBlock(text=self.text))
        if self.reasoning:
            blocks.insert(0, ThinkingBlock(content=self.reasoning))
        additional: dict[str, Any] = {}
        if self.tool_calls:
            # Streamed structured prediction and chat engines look for calls here, not in the blocks.
            additional["tool_calls"] = [_openai_tool_call(call) for call in self.tool_calls]
        if self.invalid_tool_calls:
            additional["invalid_tool_calls"] = [asdict(call) for call in self.invalid_tool_calls]
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=additional)


def _openai_tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call.id, "type": "function", "function": function}


def _raw(result: GenerationResult | None, model_name: str) -> dict[str, Any] | None:
    if result is None:
        return None
    return {
        "model": model_name,
        "finish_reason": result.finish_reason,
        "usage": asdict(result.usage) | {"total_tokens": result.usage.total_tokens},
        "ssd": result.trace.summary(),
        "timings": asdict(result.timings),
    }


def _token_counts(result: GenerationResult | None) -> dict[str, int]:
    """Under the names that LlamaIndex's token counter looks for."""
    if result is None:
        return {}
    usage = result.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _logprobs(logprobs: Iterable[TokenLogprob] | None) -> list[list[LogProb]] | None:
    """For each token a list: the chosen token, then its likeliest alternatives."""
    if not logprobs:
        return None
    return [[_logprob(t.token, t.logprob), *_alternatives(t)] for t in logprobs]


def _alternatives(chosen: TokenLogprob) -> list[LogProb]:
    return [_logprob(token, logprob) for token_id, token, logprob in chosen.top if token_id != chosen.token_id]


def _logprob(token: str, logprob: float) -> LogProb:
    return LogProb(token=token, logprob=logprob, bytes=list(token.encode()))
