"""How model families write tool calls, and which way a chat template speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from ssd_engine.answers.formats.call_format import CallFormat
from ssd_engine.answers.formats.json_body import JsonBody, NamedJsonBody


class ToolFormat(StrEnum):
    """How a model family writes a tool call."""

    HERMES = "hermes"
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Qwen, Hermes)."""
    LLAMA = "llama"
    """`<|python_tag|>{"name": ..., "parameters": {...}}`, several separated by `;`; the tag is often left out."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]` or `[TOOL_CALLS]name[ARGS]{...}`."""


def _name_before_mark(head: str) -> str:
    """The name in `name[CALL_ID]...[ARGS]`."""
    return head.partition("[")[0].strip()


FORMATS: Mapping[ToolFormat, CallFormat] = {
    ToolFormat.HERMES: CallFormat(("<tool_call>",), JsonBody(), ("</tool_call>",)),
    ToolFormat.LLAMA: CallFormat(("<|python_tag|>",), JsonBody()),
    ToolFormat.MISTRAL: CallFormat(
        ("[TOOL_CALLS]",), NamedJsonBody(_name_before_mark, ("[TOOL_CALLS]",)), further=("[CALL_ID]", "[ARGS]")
    ),
}

MARKERS: Mapping[ToolFormat, tuple[str, ...]] = {format: FORMATS[format].markers for format in ToolFormat}
"""Token strings of each format that decoding has to leave visible. The first one begins a call."""


def detect_format(chat_template: str | None) -> ToolFormat:
    """The format that a chat template speaks of; `HERMES` when it speaks of none."""
    template = chat_template or ""
    if "<tool_call>" in template:
        return ToolFormat.HERMES
    if "[TOOL_CALLS]" in template:
        return ToolFormat.MISTRAL
    if "<|python_tag|>" in template or "<|start_header_id|>" in template:
        return ToolFormat.LLAMA
    return ToolFormat.HERMES
