"""Values of arguments that are no JSON: text that a schema types, literals of Python."""

from __future__ import annotations

from typing import Any

import pytest
from tool_call_cases import PRODUCT, SCHEMAS, calls, in_format, joined, parse, without_ids

from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, '{"a": 1}', '{"a": 1}'),
        ({"type": "string"}, " two\n lines ", " two\n lines "),
        ({"type": "string"}, "", ""),
        ({"type": "string"}, "<parameter=b>\n1\n</parameter> is XML", "<parameter=b>\n1\n</parameter> is XML"),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, "12.0", 12),
        ({"type": "integer"}, "a dozen", "a dozen"),
        ({"type": "number"}, "-1.5", -1.5),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "null"}, "None", None),
        ({"type": "array"}, '[1, "two"]', [1, "two"]),
        ({"type": "object"}, "{'a': (1, None)}", {"a": [1, None]}),
        ({"type": "object"}, "{'a': ", "{'a': "),
        ({"properties": {"a": {}}}, '{"a": 1}', {"a": 1}),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "12", 12),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "a dozen", "a dozen"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "12", "12"),
        ({"allOf": [{"$ref": "#/$defs/count"}]}, "12", 12),
        ({"$ref": "#/$defs/round"}, "12", "12"),
        ({"$ref": "https://elsewhere.example"}, "12", "12"),
        ({"enum": [1, 2]}, "2", 2),
        ({"enum": ["1", "2"]}, "2", "2"),
        ({"const": True}, "true", True),
        ({}, "12", "12"),
        (True, "12", "12"),
    ],
)
def test_values_in_xml_are_what_the_schema_says(schema: Any, text: str, value: Any) -> None:
    definitions = {"count": {"type": "integer"}, "round": {"$ref": "#/$defs/round"}}
    tools = {"f": {"type": "object", "properties": {"x": schema}, "$defs": definitions}}
    call = f"<tool_call>\n<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>\n</tool_call>"
    for pieces in ([call], [*call]):
        parser = ToolCallParser(ToolFormat.QWEN3_CODER, tools)
        assert calls(joined([*map(parser.feed, pieces), parser.finish()])) == [("f", {"x": value})]


def test_values_in_xml_without_a_schema_are_text() -> None:
    expected = [("multiply", {"a": "2", "b": "3.5"})]
    text = in_format(ToolFormat.QWEN3_CODER, [PRODUCT])
    assert calls(parse(text, ToolFormat.QWEN3_CODER)) == expected
    assert calls(parse(text, ToolFormat.QWEN3_CODER, {"multiply": {}})) == expected


def test_an_argument_in_xml_may_lack_its_end() -> None:
    text = "<tool_call><function=multiply>\n<parameter=a>\n2\n<parameter=b>\n3.5\n</function>\n</tool_call>"
    assert calls(parse(text, ToolFormat.QWEN3_CODER, SCHEMAS)) == [PRODUCT]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'Lyon'", "Lyon"),
        ('"it\'s (here]"', "it's (here]"),
        (r"'it\'s \"\n'", "it's \"\n"),
        ("'two\nlines'", "two\nlines"),
        ('"""two\nlines"""', "two\nlines"),
        (r"'\d+\.py'", r"\d+\.py"),
        (r'"\ud83d\ude42"', "🙂"),
        ("1_000", 1000),
        ("-2.5", -2.5),
        ("True", True),
        ("true", True),
        ("None", None),
        ("null", None),
        ("[1, (2, 3), {'a': []}]", [1, [2, 3], {"a": []}]),
        ("'<|python_end|> ```'", "<|python_end|> ```"),
        ("'from=1, in='", "from=1, in="),
    ],
)
@pytest.mark.parametrize(
    ("format", "markup"),
    [
        (ToolFormat.PYTHONIC, "[%s]"),
        (ToolFormat.PYTHONIC, "<|python_start|>[%s]<|python_end|>"),
        (ToolFormat.GEMMA3, "```tool_code\n%s\n```"),
    ],
)
def test_literals_of_python_are_values(format: ToolFormat, markup: str, written: str, value: Any) -> None:
    text = markup % f"f(x={written}, from=1)"
    for pieces in ([text], [*text]):
        parser = ToolCallParser(format, ["f"])
        found = joined([*map(parser.feed, pieces), parser.finish()])
        assert without_ids(found) == ("", [("f", {"x": value, "from": 1})], [])
