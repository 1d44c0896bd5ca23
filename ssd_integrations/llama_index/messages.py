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
        InvalidRequestError: a message holds a block other than text and tool calls, or tool arguments that are
            no JSON object.
    """
    tool_names: dict[str, str] = {}
    converted = [_to_engine_message(message, tool_names) for message in messages]
    if system_prompt and (not converted or converted[0]["role"] != "system"):
        converted.insert(0, {"role": "system", "content": system_prompt})
    return converted


def _to_engine_message(message: ChatMessage, tool_names: dict[str, str]) -> dict[str, Any]:
    """One message. `tool_names` maps the id of each call seen so far to its tool's name, and is added to."""
    role = _ROLE_ALIASES.get(message.role, message.role.value)
    converted: dict[str, Any] = {"role": role, "content": "\n".join(_texts(message.blocks, role))}
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if calls:
        converted["tool_calls"] = [_to_engine_tool_call(call) for call in calls]
        tool_names |= {call.tool_call_id: call.tool_name for call in calls if call.tool_call_id}
    if role == "tool":
        call_id = message.additional_kwargs.get("tool_call_id")
        name = message.additional_kwargs.get("name") or tool_names.get(call_id or "")
        converted |= {key: value for key, value in (("tool_call_id", call_id), ("name", name)) if value}
    return converted


def _texts(blocks: Iterable[ContentBlock], role: str) -> list[str]:
    texts: list[str] = []
    for block in blocks:
        match block:
            case TextBlock():
                texts.append(block.text)
            case CitableBlock():
                texts += _texts(block.content, role)
            case CitationBlock():
                texts += _texts([block.cited_content], role)
            # Calls travel beside the text; past reasoning is not read again; prefixes are cached without a mark.
            case ToolCallBlock() | ThinkingBlock() | CachePoint():
                pass
            case _:
                raise InvalidRequestError(
                    f"A {role} message holds a block of type {block.block_type!r}; the models read text alone. "
                    "Leave the block out, or put its content into words in a TextBlock."
                )
    return texts


def _to_engine_tool_call(call: ToolCallBlock) -> dict[str, Any]:
    function = {"name": call.tool_name, "arguments": tool_arguments(call)}
    return {"id": call.tool_call_id or "", "type": "function", "function": function}


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
