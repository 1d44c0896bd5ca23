"""How model families write tool calls, and which way a chat template speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from ssd_engine.answers.blanks import BLANKS
from ssd_engine.answers.formats.body import FirstOf
from ssd_engine.answers.formats.call_format import CallFormat
from ssd_engine.answers.formats.gemma_body import GemmaBody
from ssd_engine.answers.formats.json_body import JsonBody, NamedJsonBody
from ssd_engine.answers.formats.python_body import PythonBody
from ssd_engine.answers.formats.xml_body import XmlBody


class ToolFormat(StrEnum):
    """How a model family writes a tool call."""

    HERMES = "hermes"
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Qwen, Hermes)."""
    LLAMA = "llama"
    """`<|python_tag|>{"name": ..., "parameters": {...}}`, several separated by `;`; the tag is often left out."""
    LLAMA4 = "llama4"
    """`<|python_start|>{"name": ..., "parameters": {...}}<|python_end|>`; the markers are often left out."""
    PYTHONIC = "pythonic"
    """`[name(key=value, ...), ...]`, with Llama 4's markers or without (Llama 3.2 and 4 with templates that ask it)."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]` or `[TOOL_CALLS]name[ARGS]{...}`."""
    QWEN3_CODER = "qwen3_coder"
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>` (Qwen3-Coder, Qwen3.5)."""
    DEEPSEEK_V3 = "deepseek_v3"
    """`<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, and the arguments as fenced JSON (DeepSeek V3, R1)."""
    DEEPSEEK_V31 = "deepseek_v31"
    """`<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>` (DeepSeek V3.1)."""
    GEMMA3 = "gemma3"
    """A call in Python, in a fence named `tool_code` (Gemma 3, which is told so in its prompt)."""
    FUNCTIONGEMMA = "functiongemma"
    """`<start_function_call>call:name{key:<escape>text<escape>,...}<end_function_call>`."""
    GEMMA4 = "gemma4"
    """`<|tool_call>call:name{key:<|"|>text<|"|>,...}<tool_call|>`."""
    PHI4_MINI = "phi4_mini"
    """`<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>`, or `functools[...]`."""
    GRANITE = "granite"
    """`<|tool_call|>[{"name": ..., "arguments": {...}}]` (Granite 3; Granite 4 writes as Hermes does)."""


_PYTHON_START, _PYTHON_END = "<|python_start|>", "<|python_end|>"
_IN_PYTHON = BLANKS + ",;])}"
"""What stands between two calls in Python."""
_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END, _SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def _name_before_mark(head: str) -> str:
    """The name in `name[CALL_ID]...[ARGS]`."""
    return head.partition("[")[0].strip()


def _name_around_mark(head: str) -> str:
    """The name in `name<｜tool▁sep｜>`, or in `function<｜tool▁sep｜>name` and the beginning of a fence."""
    kind, _, name = head.partition(_SEP)
    return name.partition("```")[0].strip() or kind.strip()


_DEEPSEEK = CallFormat(
    (_CALLS_BEGIN, _CALL_BEGIN),
    NamedJsonBody(_name_around_mark, (_CALLS_BEGIN, _CALL_BEGIN, _CALL_END, _CALLS_END)),
    (_CALL_END, _CALLS_END),
    inner=_CALL_BEGIN,
    further=(_SEP,),
    separators=BLANKS + ",;]}`",
)

FORMATS: Mapping[ToolFormat, CallFormat] = {
    ToolFormat.HERMES: CallFormat(("<tool_call>",), JsonBody(), ("</tool_call>",)),
    ToolFormat.LLAMA: CallFormat(("<|python_tag|>",), JsonBody()),
    ToolFormat.LLAMA4: CallFormat((_PYTHON_START,), JsonBody(), (_PYTHON_END,), inner=_PYTHON_END),
    ToolFormat.PYTHONIC: CallFormat(
        (_PYTHON_START,),
        FirstOf(JsonBody(), PythonBody((_PYTHON_START, _PYTHON_END))),
        (_PYTHON_END,),
        inner=_PYTHON_END,
        separators=_IN_PYTHON,
        reads_python=True,
    ),
    ToolFormat.MISTRAL: CallFormat(
        ("[TOOL_CALLS]",), NamedJsonBody(_name_before_mark, ("[TOOL_CALLS]",)), further=("[CALL_ID]", "[ARGS]")
    ),
    ToolFormat.QWEN3_CODER: CallFormat(
        ("<tool_call>",), FirstOf(JsonBody(), XmlBody("</tool_call>")), ("</tool_call>",), head="<function={}>"
    ),
    ToolFormat.DEEPSEEK_V3: _DEEPSEEK,
    ToolFormat.DEEPSEEK_V31: _DEEPSEEK,
    ToolFormat.GEMMA3: CallFormat(
        ("```tool_code",),
        FirstOf(JsonBody(), PythonBody(("```",))),
        ("```",),
        separators=_IN_PYTHON,
        reads_python=True,
    ),
    ToolFormat.FUNCTIONGEMMA: CallFormat(
        ("<start_function_call>",),
        FirstOf(JsonBody(), GemmaBody("<escape>")),
        ("<end_function_call>", "<start_function_response>"),
        further=("<escape>",),
    ),
    ToolFormat.GEMMA4: CallFormat(
        ("<|tool_call>",),
        FirstOf(JsonBody(), GemmaBody('<|"|>')),
        ("<tool_call|>", "<|tool_response>"),
        further=('<|"|>',),
    ),
    ToolFormat.PHI4_MINI: CallFormat(("<|tool_call|>",), JsonBody(), ("<|/tool_call|>",), words=("functools",)),
    ToolFormat.GRANITE: CallFormat(("<|tool_call|>", "<tool_call>"), JsonBody(), ("</tool_call>",)),
}

MARKERS: Mapping[ToolFormat, tuple[str, ...]] = {format: FORMATS[format].markers for format in ToolFormat}
"""Token strings of each format that decoding has to leave visible. The first one begins a call."""


_SIGNS: tuple[tuple[ToolFormat, tuple[str, ...]], ...] = (
    (ToolFormat.QWEN3_CODER, ("<tool_call>", "<function=", "<parameter=")),
    (ToolFormat.PYTHONIC, ("func_name1(",)),
    (ToolFormat.HERMES, ("<tool_call>",)),
    (ToolFormat.MISTRAL, ("[TOOL_CALLS]",)),
    (ToolFormat.DEEPSEEK_V3, (_CALLS_BEGIN, "```json")),
    (ToolFormat.DEEPSEEK_V31, (_CALLS_BEGIN,)),
    (ToolFormat.FUNCTIONGEMMA, ("<start_function_call>",)),
    (ToolFormat.GEMMA4, ("<|tool_call>",)),
    (ToolFormat.PHI4_MINI, ("<|/tool|>",)),
    (ToolFormat.PHI4_MINI, ("functools",)),
    (ToolFormat.GRANITE, ("<|tool_call|>",)),
    (ToolFormat.LLAMA, ("<|python_tag|>",)),
    (ToolFormat.LLAMA, ("<|start_header_id|>",)),
    (ToolFormat.LLAMA4, (_PYTHON_START,)),
    (ToolFormat.LLAMA4, ("<|header_start|>",)),
    (ToolFormat.GEMMA3, ("<start_of_turn>",)),
)
"""What a template holds, all of it, that speaks of a format; the first that fits counts."""


def detect_format(chat_template: str | None) -> ToolFormat:
    """The format that a chat template speaks of; `HERMES` when it speaks of none."""
    template = chat_template or ""
    return next((format for format, signs in _SIGNS if all(sign in template for sign in signs)), ToolFormat.HERMES)
