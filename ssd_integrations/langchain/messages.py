"""LangChain messages <-> the engine's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UsageMetadata,
)
from langchain_core.messages.tool import tool_call_chunk

from ssd_engine.answers.result import GenerationResult, Piece, TokenLogprob, Usage
from ssd_engine.errors import InvalidRequestError


def to_engine_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Messages as the engine takes them; raises `InvalidRequestError` for a message class it has no role for."""
    return [_to_engine_message(message) for message in messages]


def _to_engine_message(message: BaseMessage) -> dict[str, Any]:
    match message:
        case ChatMessage():
            return {"role": message.role, "content": message.content}
        case HumanMessage():
            return {"role": "user", "content": message.content}
        case SystemMessage():
            return {"role": "system", "content": message.content}
        case AIMessage():
            return _from_ai_message(message)
        case ToolMessage():
            result = {"role": "tool", "content": message.content, "tool_call_id": message.tool_call_id}
            return {**result, "name": message.name} if message.name else result
        case FunctionMessage():
            return {"role": "tool", "content": message.content, "name": message.name}
    raise InvalidRequestError(f"a {type(message).__name__} has no role in a conversation; give chat messages")


def _from_ai_message(message: AIMessage) -> dict[str, Any]:
    converted: dict[str, Any] = {"role": "assistant", "content": message.content}
    # As a block of content, or in `additional_kwargs`, where most integrations keep it.
    if reasoning := "\n".join(
        b["reasoning"] for b in message.content_blocks if b["type"] == "reasoning" and b.get("reasoning")
    ):
        converted["reasoning_content"] = reasoning
    calls = [_call(call["id"], call["name"], call["args"]) for call in message.tool_calls]
    function = message.additional_kwargs.get("function_call")
    if not calls and isinstance(function, dict):  # OpenAI's older form, in threads that were kept
        calls = [_call(None, function.get("name"), function.get("arguments"))]
    return {**converted, "tool_calls": calls} if calls else converted


def _call(call_id: str | None, name: Any, arguments: Any) -> dict[str, Any]:
    """A call as the engine takes it; text that is no JSON stays what it is."""
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments or "{}")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def to_ai_message(result: GenerationResult, model_name: str) -> AIMessage:
    """A finished answer as a message."""
    return AIMessage(
        content=result.text,
        additional_kwargs=_reasoning(result.reasoning),
        tool_calls=[ToolCall(name=c.name, args=c.arguments, id=c.id, type="tool_call") for c in result.tool_calls],
        invalid_tool_calls=[
            InvalidToolCall(name=c.name, args=c.text, id=c.id, error=c.error, type="invalid_tool_call")
            for c in result.invalid_tool_calls
        ],
        usage_metadata=usage_metadata(result.usage),
        response_metadata=response_metadata(result, model_name),
    )


def to_message_chunk(piece: Piece, model_name: str, first_call: int) -> AIMessageChunk:
    """A piece of a streamed answer as a chunk; its tool calls are numbered from `first_call`."""
    calls: list[tuple[str | None, str, str]] = [(c.name, json.dumps(c.arguments), c.id) for c in piece.tool_calls]
    # LangChain closes what is open in a chunk's arguments; behind the error it takes the text for no arguments at all.
    calls += [(c.name, f"{c.error}: {c.text}", c.id) for c in piece.invalid_tool_calls]
    chunks = [
        tool_call_chunk(name=name, args=arguments, id=call_id, index=first_call + i)
        for i, (name, arguments, call_id) in enumerate(calls)
    ]
    said: dict[str, Any] = {
        "content": piece.text,
        "additional_kwargs": _reasoning(piece.reasoning),
        "tool_call_chunks": chunks,
    }
    if piece.result is None:
        return AIMessageChunk(**said)
    return AIMessageChunk(
        **said,
        usage_metadata=usage_metadata(piece.result.usage),
        response_metadata=response_metadata(piece.result, model_name),
        chunk_position="last",
    )


def _reasoning(text: str) -> dict[str, Any]:
    """Reasoning where LangChain looks for it to make a block of content of it."""
    return {"reasoning_content": text} if text else {}


def usage_metadata(usage: Usage) -> UsageMetadata:
    """The engine's counts as LangChain has them."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details={"cache_read": usage.cached_prompt_tokens},
        output_token_details={"reasoning": usage.reasoning_tokens},
    )


def response_metadata(result: GenerationResult, model_name: str) -> dict[str, Any]:
    """Model, reason of the end, the trace's summary under `ssd`, and log-probabilities if they were asked for."""
    metadata: dict[str, Any] = {
        "model_name": model_name,
        "model_provider": "ssd",
        "finish_reason": result.finish_reason,
        "ssd": result.trace.summary(),
    }
    if result.logprobs is not None:
        metadata["logprobs"] = {"content": list(_logprobs(result.logprobs))}
    return metadata


def _logprobs(logprobs: Iterable[TokenLogprob]) -> Iterable[dict[str, Any]]:
    for entry in logprobs:
        top = [{"token": token, "logprob": value} for _, token, value in entry.top]
        yield {"token": entry.token, "logprob": entry.logprob, "top_logprobs": top}
