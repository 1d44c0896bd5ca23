"""What tests of tool calls have in common."""

from __future__ import annotations

import json
from typing import Any

from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat

NAMES = ("get_weather", "multiply")
WEATHER = ("get_weather", {"city": "Paris"})
PRODUCT = ("multiply", {"a": 2, "b": 3.5})


def joined(pieces: list[ParsedText]) -> ParsedText:
    return ParsedText(
        "".join(p.text for p in pieces),
        tuple(c for p in pieces for c in p.tool_calls),
        tuple(c for p in pieces for c in p.invalid_tool_calls),
    )


def parse(text: str, format: ToolFormat = ToolFormat.HERMES, names: tuple[str, ...] = NAMES) -> ParsedText:
    parser = ToolCallParser(format, names)
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
