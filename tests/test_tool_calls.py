"""Tool calls in answers: each family's markup, fenced and bare JSON, broken calls."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tool_call_cases import (
    BEHIND_A_SENTENCE,
    NAMES,
    PRODUCT,
    WEATHER,
    WHOLE_ANSWERS,
    calls,
    joined,
    parse,
    without_ids,
    written,
)

from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat


@pytest.mark.parametrize(("format", "text", "expected"), WHOLE_ANSWERS.values(), ids=WHOLE_ANSWERS.keys())
def test_an_answer_in_the_familys_markup_is_its_calls(format: ToolFormat, text: str, expected: list[Any]) -> None:
    assert without_ids(parse(text, format)) == ("", expected, [])


@pytest.mark.parametrize("format", ToolFormat)
@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{written(WEATHER, indent=2)}\n```",
        f"```\n{written(WEATHER)}\n```",
        f"```JSON {written(WEATHER)}```",
        f"```json\n[{written(WEATHER)}]\n```",
        f"```json\n{written(WEATHER, 'parameters')}\n```\n",
        f"```json\n{written(WEATHER)}",
        f"```json\n{written(WEATHER)}\n``",
        written(WEATHER),
        f"\n {written(WEATHER, indent=2)}\n",
        f"[{written(WEATHER, 'parameters')}]",
    ],
)
def test_fenced_json_and_json_that_is_the_whole_answer_are_calls_in_every_format(format: ToolFormat, text: str) -> None:
    assert without_ids(parse(text, format)) == ("", [WEATHER], [])


@pytest.mark.parametrize("format", ToolFormat)
@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "Two plus two is four.\n\n",
        "a < b, `x`, ``y`` and [1, 2] {3}",
        '{"city": "Paris"}',
        written(("launch", {"at": "dawn"})),
        '{"name": "get_weather"}',
        '{"name": "get_weather", "arg',
        '{"name": "launch", "arguments": {"at": "da',
        '{"name": ["get_weather"], "arguments": {}}',
        '{"name": "get_weather", "arguments": [1]}',
        f"{written(WEATHER)} is what I would call.",
        f"I would call {written(WEATHER)}",
        '```json\n{"city": "Paris"}\n```\nThat is all.\n',
        f"```json\n{written(('launch', {}))}\n```",
        f"```json\n[{written(WEATHER)}, 3]\n```",
        f"```json\n{written(WEATHER)} // the call\n```",
        f'```json\n{{"calls": [{written(WEATHER)}]}}\n```',
        "```python\nprint({'name': 'multiply'})\n```\n```json5\n{}\n```",
        "```json\n[]\n```",
        f"[]{written(WEATHER)}",
        f"[\u00a0{written(WEATHER)[:-3]}",
        "````\n```json\n",
        "``` {broken json that goes on for long} ```",
    ],
)
def test_other_text_comes_back_unchanged(format: ToolFormat, text: str) -> None:
    assert without_ids(parse(text, format)) == (text, [], [])


def test_without_offered_tools_json_is_text_but_markup_is_a_call() -> None:
    fenced = f"```json\n{written(WEATHER)}\n```"
    assert without_ids(parse(fenced, tools=())) == (fenced, [], [])
    assert calls(parse(f"<tool_call>{written(WEATHER)}</tool_call>", tools=())) == [WEATHER]


def test_text_around_calls_is_kept_without_the_blanks_next_to_the_markup() -> None:
    marked = f"<tool_call>\n{written(WEATHER)}\n</tool_call>"
    text = f"Let me look.\n\n{marked}\n\n Then this: ```json\n{written(PRODUCT)}\n```\nDone. \n"
    assert without_ids(parse(text)) == ("Let me look.Then this:Done. \n", [WEATHER, PRODUCT], [])


@pytest.mark.parametrize("name", BEHIND_A_SENTENCE)
@pytest.mark.parametrize("format", ToolFormat)
def test_a_sentence_and_then_a_call(format: ToolFormat, name: str) -> None:
    assert without_ids(parse(BEHIND_A_SENTENCE[name], format)) == ("Sure, let me check.", [WEATHER], [])


def test_json_on_a_line_of_its_own_is_a_call_at_the_end_of_the_answer_alone() -> None:
    example = f"You would write\n{written(WEATHER)}\nand get the weather."
    assert without_ids(parse(example)) == (example, [], [])
    assert parse(f"Let me see.\n{written(WEATHER)[:-9]}").invalid_tool_calls[0].name == "get_weather"


def test_text_is_given_at_once_and_a_call_as_soon_as_it_is_complete() -> None:
    parser = ToolCallParser(ToolFormat.HERMES, NAMES)
    assert parser.feed("Let me").text == "Let me"
    assert parser.feed(" look <").text == " look"
    assert parser.feed("- here").text == " <- here"
    assert parser.feed("\n<tool_").text == ""
    assert parser.feed(f"call>\n{written(WEATHER)[:-1]}") == ParsedText()
    assert calls(parser.feed("}")) == [WEATHER]
    assert parser.feed("\n</tool_call>") == ParsedText()
    assert parser.feed("\nSee ``").text == "See"
    assert parser.feed("`python\n").text == ""
    assert parser.feed("x = 1\n").text == " ```python\nx = 1"
    assert parser.finish().text == "\n"


def test_each_call_of_a_list_is_given_as_soon_as_it_is_complete() -> None:
    parser = ToolCallParser(ToolFormat.MISTRAL, NAMES)
    assert calls(parser.feed(f"[TOOL_CALLS] [{written(WEATHER)}")) == [WEATHER]
    assert calls(parser.feed(f", {written(PRODUCT)}]")) == [PRODUCT]


def test_fenced_json_that_is_no_call_is_given_as_soon_as_that_is_known() -> None:
    parser = ToolCallParser(ToolFormat.HERMES, NAMES)
    assert parser.feed('```json\n{"city": "Paris"').text == ""
    assert parser.feed("}").text == '```json\n{"city": "Paris"}'


def test_ids_are_distinct_and_look_as_the_frameworks_expect() -> None:
    found = parse(f"<tool_call>{written(WEATHER)}{written(WEATHER)}</tool_call><tool_call>?</tool_call>")
    ids = [c.id for c in (*found.tool_calls, *found.invalid_tool_calls)]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("call_[0-9a-f]{24}", i) for i in ids)


def test_a_tool_that_was_not_offered_is_still_a_call_in_markup() -> None:
    assert calls(parse('<tool_call>{"name": "launch", "arguments": {}}</tool_call>')) == [("launch", {})]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (json.dumps(json.dumps({"city": "Paris"})), {"city": "Paris"}),
        ('{"code": "a\nb"}', {"code": "a\nb"}),
        ('{"tag": "</tool_call> <tool_call>"}', {"tag": "</tool_call> <tool_call>"}),
        ("null", {}),
        ('""', {}),
    ],
)
def test_arguments_are_read_as_models_write_them(arguments: str, expected: dict[str, Any]) -> None:
    text = f'<tool_call>{{"name": "get_weather", "arguments": {arguments}}}</tool_call>'
    for pieces in ([text], [*text]):
        parser = ToolCallParser(ToolFormat.HERMES, NAMES)
        found = joined([*map(parser.feed, pieces), parser.finish()])
        assert without_ids(found) == ("", [("get_weather", expected)], [])


def test_a_call_without_arguments_has_none() -> None:
    assert calls(parse('<tool_call>{"name": "now"}</tool_call>')) == [("now", {})]


@pytest.mark.parametrize("fence", ["", "```json\n"], ids=["bare", "fenced"])
@pytest.mark.parametrize("before", [[], [PRODUCT], [PRODUCT, WEATHER]], ids=len)
def test_a_call_without_markup_that_breaks_off_is_invalid_and_those_before_it_stand(
    fence: str, before: list[tuple[str, dict[str, Any]]]
) -> None:
    for broken, reason in ((written(WEATHER)[:-3], "ended within"), (written(WEATHER)[:-1] + ', x: "y"}', "double")):
        text = fence + "\n".join([*map(written, before), broken])
        for pieces in ([text], [*text]):
            parser = ToolCallParser(ToolFormat.HERMES, NAMES)
            found = joined([*map(parser.feed, pieces), parser.finish()])
            assert (found.text, calls(found)) == ("", before)
            [invalid] = found.invalid_tool_calls
            assert (invalid.name, invalid.text) == ("get_weather", broken)
            assert reason in invalid.error


def test_text_goes_on_behind_a_fence_with_a_broken_call() -> None:
    found = parse(f"Now:\n```json\n{written(PRODUCT)}\n{written(WEATHER)[:-2]}\n```\nDone.")
    assert (found.text, calls(found)) == ("Now:Done.", [PRODUCT])
    assert [c.name for c in found.invalid_tool_calls] == ["get_weather"]


@pytest.mark.parametrize(
    ("format", "text", "name", "inner", "error"),
    [
        (ToolFormat.HERMES, "<tool_call>{'name': 1}</tool_call>", None, "{'name': 1}", "double quotes"),
        (ToolFormat.HERMES, "<tool_call>\nget_weather\n</tool_call>", None, "get_weather", "Expecting a JSON object"),
        (ToolFormat.HERMES, '<tool_call>{"name": "x', None, '{"name": "x', "Unterminated string"),
        (ToolFormat.HERMES, '<tool_call>{"name": "x</tool_call>', None, '{"name": "x', "Unterminated string"),
        (ToolFormat.HERMES, "<tool_call>", None, "", "Expecting a JSON object"),
        (ToolFormat.HERMES, '<tool_call>{"arguments": {}}</tool_call>', None, '{"arguments": {}}', '"name" is null'),
        (
            ToolFormat.HERMES,
            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
            "f",
            '{"name": "f", "arguments": [1]}',
            "not a JSON object but [1]",
        ),
        (
            ToolFormat.HERMES,
            '<tool_call>{"name": "f", "arguments": "Paris"}</tool_call>',
            "f",
            '{"name": "f", "arguments": "Paris"}',
            "the arguments of 'f' are a string",
        ),
        (
            ToolFormat.HERMES,
            '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
            "f",
            '{"name": "f", "arguments": {"x": NaN}}',
            "not JSON compliant",
        ),
        (
            ToolFormat.HERMES,
            '<tool_call>{"name": "f", "arguments": {"x": "\\ud83d"}}</tool_call>',
            "f",
            '{"name": "f", "arguments": {"x": "\\ud83d"}}',
            "surrogates",
        ),
        (ToolFormat.LLAMA, '<|python_tag|>search.call(query="x")', None, 'search.call(query="x")', "JSON object"),
        (ToolFormat.MISTRAL, '[TOOL_CALLS] ["f"]', None, '["f"]', "Expecting a JSON object"),
        (ToolFormat.MISTRAL, "[TOOL_CALLS]f[ARGS]{x}", "f", "f[ARGS]{x}", "double quotes"),
        (ToolFormat.MISTRAL, "[TOOL_CALLS]f[ARGS]", None, "f[ARGS]", "Expecting a JSON object"),
        (ToolFormat.MISTRAL, "[TOOL_CALLS][ARGS]{}", None, "[ARGS]{}", "names no tool"),
    ],
)
def test_markup_around_no_valid_call_is_an_invalid_call(
    format: ToolFormat, text: str, name: str | None, inner: str, error: str
) -> None:
    found = parse(text, format)
    assert (found.text, found.tool_calls) == ("", ())
    [invalid] = found.invalid_tool_calls
    assert (invalid.name, invalid.text) == (name, inner)
    assert error in invalid.error


def test_what_follows_a_broken_call_is_read_on() -> None:
    text = f"One <tool_call>{{broken</tool_call> two <tool_call>[<tool_call>{written(WEATHER)}</tool_call> three"
    found = parse(text)
    assert found.text == "Onetwothree"
    assert [c.text for c in found.invalid_tool_calls] == ["{broken", "["]
    assert calls(found) == [WEATHER]


@pytest.mark.parametrize("nonsense", ["[" * 100_000, '{"a":' * 100_000, '{"a":' + "1" * 10_000 + "}"])
@pytest.mark.parametrize("before", ["", "```json\n", "<tool_call>", "<tool_call>{"])
def test_endless_nonsense_is_survived(before: str, nonsense: str) -> None:
    found = parse(before + nonsense)
    assert found.text or found.invalid_tool_calls
    assert found.tool_calls == ()
