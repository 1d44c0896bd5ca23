"""LlamaIndex tools -> the engine's tools, and an answer's calls -> LlamaIndex tool selections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from ssd_integrations.llama_index.messages import tool_arguments

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

ToolChoice = str | dict[str, Any] | None


def tool_specifications(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """OpenAI-style specifications of tools."""
    return [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]


def tool_selections(message: ChatMessage) -> list[ToolSelection]:
    """The valid tool calls of an assistant message, in the order written."""
    return [
        ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=tool_arguments(block))
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
