"""What tests of tool calls have in common."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat

GEMMA = (ToolFormat.FUNCTIONGEMMA, ToolFormat.GEMMA4)
GEMMA4_QUOTE = '<|"|>'
NAMES = ("get_weather", "multiply")
WEATHER = ("get_weather", {"city": "Paris"})
Tools = Collection[str] | Mapping[str, Mapping[str, Any]]
SCHEMAS = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}}},
    "multiply": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "number"}}},
}
PRODUCT = ("multiply", {"a": 2, "b": 3.5})


def joined(pieces: list[ParsedText]) -> ParsedText:
    return ParsedText(
        "".join(p.text for p in pieces),
        tuple(c for p in pieces for c in p.tool_calls),
        tuple(c for p in pieces for c in p.invalid_tool_calls),
    )


def parse(text: str, format: ToolFormat = ToolFormat.HERMES, tools: Tools = NAMES) -> ParsedText:
    parser = ToolCallParser(format, tools)
    return joined([parser.feed(text), parser.finish()])


def without_ids(parsed: ParsedText) -> tuple[str, list[Any], list[Any]]:
    return (
        parsed.text,
        [(c.name, c.arguments) for c in parsed.tool_calls],
        [(c.name, c.text, c.error) for c in parsed.invalid_tool_calls],
    )


def calls(parsed: ParsedText) -> list[tuple[str, dict[str, Any]]]:
    return [(c.name, c.arguments) for c in parsed.tool_calls]


def written(call: tuple[str, Any], key: str = "arguments", **options: Any) -> str:
    return json.dumps({"name": call[0], key: call[1]}, **options)


WHOLE_ANSWERS = {
    "hermes": (ToolFormat.HERMES, f"<tool_call>\n{written(WEATHER)}\n</tool_call>", [WEATHER]),
    "hermes, two": (
        ToolFormat.HERMES,
        f"<tool_call>\n{written(WEATHER)}\n</tool_call>\n<tool_call>\n{written(PRODUCT)}\n</tool_call>",
        [WEATHER, PRODUCT],
    ),
    "hermes, two in one": (
        ToolFormat.HERMES,
        f"<tool_call>\n{written(WEATHER)}\n{written(PRODUCT)}\n</tool_call>",
        [WEATHER, PRODUCT],
    ),
    "hermes, a list": (
        ToolFormat.HERMES,
        f"<tool_call>[{written(WEATHER)}, {written(PRODUCT)}]</tool_call>",
        [WEATHER, PRODUCT],
    ),
    "hermes, a bracket too many": (ToolFormat.HERMES, f"<tool_call>{written(WEATHER)}}}</tool_call>", [WEATHER]),
    "hermes, cut before the end": (ToolFormat.HERMES, f"<tool_call>{written(WEATHER)}\n</tool_c", [WEATHER]),
    "llama": (ToolFormat.LLAMA, f"<|python_tag|>{written(WEATHER, 'parameters')}", [WEATHER]),
    "llama, two": (
        ToolFormat.LLAMA,
        f"<|python_tag|>{written(WEATHER, 'parameters')}; {written(PRODUCT, 'parameters')}",
        [WEATHER, PRODUCT],
    ),
    "llama, no tag": (ToolFormat.LLAMA, f"\n{written(WEATHER, 'parameters')}", [WEATHER]),
    "llama, two, no tag": (
        ToolFormat.LLAMA,
        f"{written(WEATHER, 'parameters')}; {written(PRODUCT, 'parameters')}",
        [WEATHER, PRODUCT],
    ),
    "mistral": (ToolFormat.MISTRAL, f"[TOOL_CALLS] [{written(WEATHER)}]", [WEATHER]),
    "mistral, two": (ToolFormat.MISTRAL, f"[TOOL_CALLS][{written(WEATHER)}, {written(PRODUCT)}]", [WEATHER, PRODUCT]),
    "mistral, cut before the end": (ToolFormat.MISTRAL, f"[TOOL_CALLS] [{written(WEATHER)},", [WEATHER]),
    "mistral, new": (ToolFormat.MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', [WEATHER]),
    "mistral, new, two": (
        ToolFormat.MISTRAL,
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]multiply[ARGS]{"a": 2, "b": 3.5}',
        [WEATHER, PRODUCT],
    ),
    "mistral, new, with an id": (
        ToolFormat.MISTRAL,
        '[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Paris"}',
        [WEATHER],
    ),
    "OpenAI's list": (
        ToolFormat.HERMES,
        '{"tool_calls": [' + f"{written(WEATHER)}, {written(PRODUCT)}]}}",
        [WEATHER, PRODUCT],
    ),
    "OpenAI's call": (
        ToolFormat.HERMES,
        '{"type": "function", "function": ' + written(("get_weather", '{"city": "Paris"}')) + "}",
        [WEATHER],
    ),
    "a fence around the format's markup": (
        ToolFormat.HERMES,
        f"```xml\n<tool_call>\n{written(WEATHER)}\n</tool_call>\n```",
        [WEATHER],
    ),
    **{
        f"{format}, fenced as {language}": (format, f"```{language}\n{written(WEATHER)}\n```", [WEATHER])
        for format in ToolFormat
        for language in ("", "json", "python", "tool_call", "xml")
    },
    **{
        f"{format}, in <{tag}>": (format, f"<{tag}>\n{written(WEATHER)}\n</{tag}>", [WEATHER])
        for format in ToolFormat
        for tag in ("tools", "function_call", "tool_calls", "function")
    },
}
BEHIND_A_SENTENCE = {
    "bare JSON": f"Sure, let me check.\n{written(WEATHER)}",
    "bare JSON, blanks": f"Sure, let me check.\n\n  {written(WEATHER)}\n",
    "a fence": f"Sure, let me check.\n```python\n{written(WEATHER)}\n```",
    "a tag": f"Sure, let me check. <tools>{written(WEATHER)}</tools>",
}


def xml(call: tuple[str, Any]) -> str:
    """A call between the markers of Qwen3-Coder."""
    arguments = "".join(f"<parameter={key}>\n{_xml_value(value)}\n</parameter>\n" for key, value in call[1].items())
    return f"<function={call[0]}>\n{arguments}</function>"


def _xml_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def python(call: tuple[str, Any]) -> str:
    """A call in Python."""
    return f"{call[0]}({', '.join(f'{key}={value!r}' for key, value in call[1].items())})"


def gemma(call: tuple[str, Any], quote: str) -> str:
    """A call between the markers of FunctionGemma and Gemma 4."""
    return f"call:{call[0]}{_gemma_value(call[1], quote)}"


def _gemma_value(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma_value(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_gemma_value(item, quote) for item in value) + "]"
    return json.dumps(value)


def in_format(format: ToolFormat, calls: list[tuple[str, Any]]) -> str:
    """Calls as the family's template writes them."""
    match format:
        case ToolFormat.HERMES:
            return "\n".join(f"<tool_call>\n{written(call)}\n</tool_call>" for call in calls)
        case ToolFormat.LLAMA:
            return "<|python_tag|>" + "; ".join(written(call, "parameters", ensure_ascii=False) for call in calls)
        case ToolFormat.LLAMA4:
            return "<|python_start|><|python_end|>" + "".join(written(call, "parameters") for call in calls)
        case ToolFormat.PYTHONIC:
            return f"[{', '.join(map(python, calls))}]"
        case ToolFormat.MISTRAL:
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}" for name, arguments in calls)
        case ToolFormat.QWEN3_CODER:
            return "\n".join(f"<tool_call>\n{xml(call)}\n</tool_call>" for call in calls)
        case ToolFormat.DEEPSEEK_V3:
            sep = "function<｜tool▁sep｜>"
            texts = [f"{sep}{name}\n```json\n{json.dumps(arguments)}\n```" for name, arguments in calls]
            return _deepseek("\n".join(f"<｜tool▁call▁begin｜>{text}<｜tool▁call▁end｜>" for text in texts))
        case ToolFormat.DEEPSEEK_V31:
            texts = [f"{name}<｜tool▁sep｜>{json.dumps(arguments)}" for name, arguments in calls]
            return _deepseek("".join(f"<｜tool▁call▁begin｜>{text}<｜tool▁call▁end｜>" for text in texts))
        case ToolFormat.GEMMA3:
            return "```tool_code\n" + "\n".join(map(python, calls)) + "\n```"
        case ToolFormat.FUNCTIONGEMMA:
            texts = [gemma(call, "<escape>") for call in calls]
            return "".join(f"<start_function_call>{text}<end_function_call>" for text in texts)
        case ToolFormat.GEMMA4:
            return "".join(f"<|tool_call>{gemma(call, GEMMA4_QUOTE)}<tool_call|>" for call in calls)
        case ToolFormat.PHI4_MINI:
            return f"<|tool_call|>[{', '.join(map(written, calls))}]<|/tool_call|>"
        case ToolFormat.GRANITE:
            return f"<|tool_call|>[{', '.join(map(written, calls))}]"


def _deepseek(calls: str) -> str:
    return f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"
