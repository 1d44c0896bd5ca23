"""LlamaIndex tools -> the engine's tools, and an answer's calls -> LlamaIndex tool selections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection

from ssd_integrations.llama_index.messages import tool_arguments
from ssd_integrations.schemas import is_recursive, json_schema_of_model

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool, ToolMetadata

ToolChoice = str | dict[str, Any] | None


def tool_specifications(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """OpenAI-style specifications of tools."""
    return [_specification(tool.metadata) for tool in tools]


def _specification(tool: ToolMetadata) -> dict[str, Any]:
    specification = tool.to_openai_tool(skip_length_check=True)
    # LlamaIndex writes generic classes' names otherwise here than where it looks a call's tool up again.
    function = {**specification["function"], "name": tool.get_name()}
    if tool.fn_schema is not None and is_recursive(schema := json_schema_of_model(tool.fn_schema)):
        function["parameters"] = schema  # of which LlamaIndex keeps the definitions alone
    return {**specification, "function": function}


def tool_selections(message: ChatMessage) -> list[ToolSelection]:
    """The valid tool calls of an assistant message, in the order written."""
    return [
        ToolSelection(tool_id=block.tool_call_id or "", tool_name=block.tool_name, tool_kwargs=tool_arguments(block))
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
