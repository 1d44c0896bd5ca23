"""LangChain's tools -> OpenAI-style specifications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from ssd_integrations.schemas import is_recursive, json_schema_of_model

ToolLike = dict[str, Any] | type | Callable[..., Any] | BaseTool


def tool_specification(tool: ToolLike) -> dict[str, Any]:
    """The specification of a tool, function, pydantic class or TypedDict; one that is given stays what it is."""
    if isinstance(tool, dict) and tool.get("type", "function") not in ("function", "object"):
        return tool  # one that a provider runs; the engine names it where it refuses it
    specification = convert_to_openai_tool(tool)
    arguments = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    if isinstance(arguments, type) and issubclass(arguments, BaseModel):
        schema = json_schema_of_model(arguments)
        if is_recursive(schema):  # LangChain writes references out, and so ends where one comes back
            specification["function"]["parameters"] = schema
    return specification
