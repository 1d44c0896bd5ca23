"""LlamaIndex tools -> the engine's tools, and an answer's calls -> LlamaIndex tool selections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from ssd_engine.errors import InvalidRequestError
from ssd_integrations.llama_index.messages import tool_arguments

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

ToolChoice = str | dict[str, Any] | None

# "required" cannot be promised without constrained decoding: the tools are offered, and the model decides.
_OFFER_ALL = (None, "auto", "any", "required")


def offered_tools(tools: Sequence[BaseTool], tool_choice: ToolChoice = None) -> list[dict[str, Any]]:
    """OpenAI-style specifications of the tools that `tool_choice` leaves on offer.

    `tool_choice` is None, "auto", "any" or "required" (all tools), "none" (no tool), a tool's name, or the OpenAI
    form `{"type": "function", "function": {"name": ...}}` (that tool alone).

    Raises:
        InvalidRequestError: `tool_choice` names no tool that was given.
    """
    specs = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
    wanted = tool_choice.get("function", {}).get("name") if isinstance(tool_choice, dict) else tool_choice
    chosen = [spec for spec in specs if spec["function"]["name"] == wanted]
    if chosen:
        return chosen
    if tool_choice == "none":
        return []
    if tool_choice in _OFFER_ALL:
        return specs
    names = ", ".join(repr(spec["function"]["name"]) for spec in specs) or "none"
    raise InvalidRequestError(
        f"tool_choice={tool_choice!r} names no tool that was given; "
        f"use 'auto', 'none' or the name of one of the tools: {names}."
    )


def tool_selections(message: ChatMessage) -> list[ToolSelection]:
    """The valid tool calls of an assistant message, in the order written."""
    return [
        ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=tool_arguments(block))
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
