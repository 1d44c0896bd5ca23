"""The grammars of the families' calls: what a template writes is allowed, what a tool's schema forbids is not."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from conftest import make_tokenizer
from test_guided_tools import FURTHER_FAMILIES, QUESTION, TOOLS, engine_of, tool
from tool_call_cases import in_format
from transformers import PreTrainedTokenizerFast

from ssd_engine import GenerationParams
from ssd_engine.answers.tool_formats import MARKERS, ToolFormat
from ssd_engine.errors import InvalidRequestError
from ssd_engine.grammars.answer_grammar import AnswerGrammar
from ssd_engine.grammars.guide import GrammarCompiler, Guide

CALLS = [("paint", {"size": "small", "coats": 3}), ("count", {"items": [1, 2]})]
FORMATS = [format for format in ToolFormat if format is not ToolFormat.MISTRAL]
"""All whose calls the grammar writes as `in_format` does; Mistral's two ways have tests of their own."""


def tokenizer_of(format: ToolFormat) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    if format is not ToolFormat.GEMMA3:
        tokenizer.add_tokens(list(MARKERS[format]))
    return tokenizer


def guide_of(format: ToolFormat, tokenizer: PreTrainedTokenizerFast, tools: list[Any], **params: Any) -> Guide:
    eos_id = tokenizer.convert_tokens_to_ids(tokenizer.eos_token)
    grammar = AnswerGrammar(format, tokenizer.added_tokens_encoder, set(tokenizer.all_special_ids))
    source = grammar.source(GenerationParams(**params), tools)
    assert source is not None
    return GrammarCompiler(tokenizer, len(tokenizer), [eos_id]).compile(source)


def written_in(format: ToolFormat, calls: list[tuple[str, Any]]) -> str:
    text = in_format(format, calls)
    return text.replace("'", '"') if format in (ToolFormat.PYTHONIC, ToolFormat.GEMMA3) else text


def walk(format: ToolFormat, text: str, tools: list[Any] = TOOLS, **params: Any) -> tuple[str, bool]:
    """What of `text` is no longer allowed, from where on, and whether the answer may end there."""
    tokenizer = tokenizer_of(format)
    guide = guide_of(format, tokenizer, tools, **params)
    token_ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    while token_ids and guide.allowed[token_ids[0]]:
        guide.advance([token_ids.pop(0)])
    may_end = bool(guide.allowed[tokenizer.convert_tokens_to_ids(tokenizer.eos_token)])
    return tokenizer.decode(token_ids), may_end


@pytest.mark.parametrize("choice", ["any", "auto"])
@pytest.mark.parametrize("format", FORMATS)
def test_calls_as_the_template_writes_them_are_allowed(format: ToolFormat, choice: str) -> None:
    assert walk(format, written_in(format, CALLS), tool_choice=choice) == ("", True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_call_behind_text_is_allowed_where_it_begins_with_a_marker(format: ToolFormat) -> None:
    if format is not ToolFormat.PYTHONIC:
        assert walk(format, f"Let me see. {written_in(format, CALLS)}") == ("", True)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("choice", ["any", "auto"])
@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [({"size": "huge", "coats": 3}, "huge"), ({"size": "small", "coats": 300}, "0"), ({"size": "small"}, None)],
)
def test_arguments_that_their_schema_forbids_are_not_written(
    format: ToolFormat, choice: str, arguments: dict[str, Any], forbidden: str | None
) -> None:
    rest, may_end = walk(format, written_in(format, [("paint", arguments)]), tool_choice=choice)
    assert rest
    assert not may_end
    if forbidden is not None:
        assert forbidden in rest


@pytest.mark.parametrize("format", FORMATS)
def test_no_more_calls_follow_than_are_wanted(format: ToolFormat) -> None:
    text = written_in(format, CALLS)
    rest, _ = walk(format, text, tool_choice="any", parallel_tool_calls=False)
    assert "count" in rest


@pytest.mark.parametrize("format", FORMATS)
def test_the_tool_that_is_named_is_the_only_one(format: ToolFormat) -> None:
    rest, _ = walk(format, written_in(format, CALLS[:1]), [TOOLS[1]], tool_choice="count")
    assert "paint" in rest


@pytest.mark.parametrize("format", ToolFormat)
@pytest.mark.parametrize("text", ["It is mild.", "a < b, [1, 2], f(x) and {}", "```python\nprint(1)\n```\n", ""])
def test_text_is_free_where_the_model_decides(format: ToolFormat, text: str) -> None:
    assert walk(format, text) == ("", True)


NODE = {
    "type": "object",
    "properties": {"label": {"enum": ["a", "b"]}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["label", "next"],
}
FIELDS = {
    "flag": {"type": "boolean"},
    "kind": {"anyOf": [{"enum": ["x", "y"]}, {"type": "null"}]},
    "ratio": {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
    "names": {"type": "array", "items": {"enum": ["Ann", "Bob"]}, "minItems": 1, "maxItems": 2},
    "place": {
        "type": "object",
        "properties": {"deep": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}},
        "required": ["deep"],
    },
    "tree": {"$ref": "#/$defs/node"},
}
RICH = {
    "type": "object",
    "properties": FIELDS,
    "required": ["flag", "names", "place"],
    "additionalProperties": False,
    "$defs": {"node": NODE},
}


@pytest.mark.parametrize("family", FURTHER_FAMILIES)
def test_schemas_of_many_kinds_are_followed(family: str) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": RICH}}]
    finished = 0
    with engine_of(FURTHER_FAMILIES[family]()) as engine:
        for seed in range(4):
            params = GenerationParams(
                max_new_tokens=300, temperature=1.0, seed=seed, tool_choice="any", parallel_tool_calls=False
            )
            result = engine.generate(QUESTION, params, tools=tools)
            finished += result.finish_reason == "tool_calls"
            for call in result.tool_calls:
                jsonschema.validate(call.arguments, RICH)
    assert finished, "no call came to its end: this test shows nothing"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ({"type": "object", "properties": {}}, {}),
        ({"type": "object"}, {"anything": "goes", "n": 1}),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}, {"b": 1}),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, {"a": 'two\n"lines" </p>'}),
        ({"type": "object", "properties": {"a": {}}}, {"a": "text"}),
    ],
)
def test_arguments_of_every_kind_can_be_written(
    format: ToolFormat, parameters: dict[str, Any], arguments: dict[str, Any]
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    text = in_format(format, [("f", arguments)])
    if format in (ToolFormat.PYTHONIC, ToolFormat.GEMMA3):
        for value in arguments.values():
            text = text.replace(repr(value), json.dumps(value))
    assert walk(format, text, tools, tool_choice="any") == ("", True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_schema_that_refers_to_itself_in_many_places_can_be_called(format: ToolFormat) -> None:
    names = [f"n{i}" for i in range(6)]
    node = {"type": "object", "properties": {name: {"$ref": "#/$defs/node"} for name in names}}
    parameters = {"type": "object", "properties": {"root": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    text = written_in(format, [("f", {"root": {"n1": {"n2": {"n3": {"n4": {"n5": {}}}}}}})])
    assert walk(format, text, tools, tool_choice="any") == ("", True)


@pytest.mark.parametrize("keyword", [{"pattern": "^a+$"}, {"maxLength": 3}])
def test_what_xml_cannot_enforce_is_an_error_where_nothing_is_passed_over(keyword: dict[str, Any]) -> None:
    tools = [tool("paint", colour={"type": "string", **keyword})]
    text = in_format(ToolFormat.QWEN3_CODER, [("paint", {"colour": "green"})])
    assert walk(ToolFormat.QWEN3_CODER, text, tools, tool_choice="any") == ("", True)
    with pytest.raises(InvalidRequestError, match="writes text without quotes"):
        walk(ToolFormat.QWEN3_CODER, text, tools, tool_choice="any", strict=True)
