"""LlamaIndex chat messages -> the engine's messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from ssd_engine.errors import InvalidRequestError

# Other vendors' words for roles that chat templates know.
_ROLE_ALIASES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}


def to_engine_messages(messages: Sequence[ChatMessage], system_prompt: str | None = None) -> list[dict[str, Any]]:
    """Messages as the engine takes them; `system_prompt` leads a conversation that does not start with its own.

    Raises:
        InvalidRequestError: tool arguments that are no JSON object.
    """
    tool_names: dict[str, str] = {}
    converted = [_to_engine_message(message, tool_names) for message in messages]
    if system_prompt and (not converted or converted[0]["role"] != "system"):
        converted.insert(0, {"role": "system", "content": system_prompt})
    return converted


def _to_engine_message(message: ChatMessage, tool_names: dict[str, str]) -> dict[str, Any]:
    """One message. `tool_names` maps the id of each call seen so far to its tool's name, and is added to."""
    role = _ROLE_ALIASES.get(message.role, message.role.value)
    converted: dict[str, Any] = {"role": role, "content": _content(message.blocks)}
    reasoning = [block.content for block in message.blocks if isinstance(block, ThinkingBlock) and block.content]
    if reasoning and role == "assistant":
        converted["reasoning_content"] = "\n".join(reasoning)
    calls = [_to_engine_tool_call(block) for block in message.blocks if isinstance(block, ToolCallBlock)]
    calls = calls or [_from_openai(call) for call in message.additional_kwargs.get("tool_calls") or ()]
    if calls:
        converted["tool_calls"] = calls
        tool_names |= {call["id"]: call["function"]["name"] for call in calls if call["id"]}
    if role == "tool":
        call_id = message.additional_kwargs.get("tool_call_id")
        name = message.additional_kwargs.get("name") or tool_names.get(call_id or "")
        converted |= {key: value for key, value in (("tool_call_id", call_id), ("name", name)) if value}
    return converted


def _content(blocks: Iterable[ContentBlock]) -> str | list[dict[str, Any]]:
    """The text; where there are blocks of other kinds, all blocks: the engine says what becomes of them."""
    contents = _contents(blocks)
    texts = [content["text"] for content in contents if content["type"] == "text"]
    return "\n".join(texts) if len(texts) == len(contents) else contents


def _contents(blocks: Iterable[ContentBlock]) -> list[dict[str, Any]]:
    """Blocks as the engine has them."""
    contents: list[dict[str, Any]] = []
    for block in blocks:
        match block:
            case TextBlock():
                contents.append({"type": "text", "text": block.text})
            case CitableBlock():
                contents += _contents(block.content)
            case CitationBlock():
                contents += _contents([block.cited_content])
            # Calls and reasoning travel beside the text; prefixes are cached without a mark.
            case ToolCallBlock() | ThinkingBlock() | CachePoint():
                pass
            case _:
                contents.append({"type": block.block_type})
    return contents


def _to_engine_tool_call(call: ToolCallBlock) -> dict[str, Any]:
    function = {"name": call.tool_name, "arguments": tool_arguments(call)}
    return {"id": call.tool_call_id or "", "type": "function", "function": function}


def _from_openai(call: Any) -> dict[str, Any]:
    """A call of `additional_kwargs`, where older messages and other integrations keep the OpenAI client's objects."""
    call = call if isinstance(call, dict) else call.model_dump()
    function = call.get("function") or {}
    block = ToolCallBlock(
        tool_call_id=call.get("id"), tool_name=function.get("name", ""), tool_kwargs=function.get("arguments") or "{}"
    )
    return _to_engine_tool_call(block)


def tool_arguments(call: ToolCallBlock) -> dict[str, Any]:
    """A call's arguments as an object; some integrations keep them as JSON text.

    Raises:
        InvalidRequestError: the text is no JSON object.
    """
    arguments: Any = call.tool_kwargs
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError:
            arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(
            f"The call of tool {call.tool_name!r} has arguments {call.tool_kwargs!r}, which are no JSON object; "
            "give tool_kwargs as a dict."
        )
    return arguments
