"""Tool calls however an answer is cut into pieces: nothing changes, and the work grows with the length."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tool_call_cases import (
    GEMMA,
    NAMES,
    PRODUCT,
    SCHEMAS,
    WEATHER,
    gemma,
    in_format,
    joined,
    parse,
    python,
    without_ids,
    written,
    xml,
)

from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import MARKERS, ToolFormat, detect_format

PARTS = st.one_of(
    st.sampled_from([marker for markers in MARKERS.values() for marker in markers]),
    st.sampled_from(
        ["```", "```json\n", "`", "\n", " ", ";", ",", "[", "]", "{", "}", '"', "\\", "<", "text", "</tool_c"]
    ),
    st.sampled_from([written(WEATHER), written(PRODUCT, "parameters", indent=1), written(("launch", {}))]),
    st.sampled_from(
        ['{"name": "get_weather", "arguments": {"city": "', '{"a": 1,', "[1, 2", "{}", '{"x": "\\u00e9"}', "1e"]
    ),
    # Longer than what is looked at with every piece.
    st.sampled_from(['{"name": "get_weather", "arguments": {"city": "' + "a" * 260, "{[" * 130, '"' + "]" * 260]),
    st.sampled_from(["[TOOL_CALLS]get_weather[ARGS]", "<|python_tag|>" + written(WEATHER), 'multiply{"a": 1}']),
    st.sampled_from(
        ["<tools>", "</tools>", "<function_call>", "</function_call>", "```xml\n", "```python\n", "\n{", "<to"]
    ),
    st.sampled_from(['{"tool_calls": [', '{"type": "function", "function": ', "\n" + written(WEATHER)]),
    st.sampled_from([xml(WEATHER), xml(PRODUCT), "<function=get_weather>", "<function=", "<parameter=city>", "<para"]),
    st.sampled_from(
        ["</parameter>", "\n</parameter>\n", "</function>", "</func", "\n<parameter=b>\n", "\n</function>"]
    ),
    st.sampled_from([python(WEATHER), python(PRODUCT), "[get_weather(", "print(default_api.", "multiply(a=", "get_w"]),
    st.sampled_from(["'", "'''", '"""', "(", ")", "\n[" + python(WEATHER), "\n" + python(PRODUCT), "```tool_code\n"]),
    st.sampled_from([gemma(WEATHER, "<escape>"), gemma(PRODUCT, '<|"|>'), "call:", "call:multiply{a:", "<esc", '<|"']),
    st.sampled_from(
        ["function<｜tool▁sep｜>get_weather\n```json\n{", "multiply<｜tool▁sep｜>{}", "<｜tool▁", "functools["]
    ),
    st.sampled_from([in_format(format, [WEATHER, PRODUCT]) for format in ToolFormat]),
    st.text(max_size=12),
)


@st.composite
def cut_answers(draw: st.DrawFn) -> list[str]:
    text = "".join(draw(st.lists(PARTS, max_size=9)))
    cuts = sorted(draw(st.sets(st.integers(0, len(text)))))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


OWN_PARTS = {
    ToolFormat.PYTHONIC: [python(WEATHER), "[get_weather(", "multiply(a=1", ")", ",", "'", "\n[", "\nprint(", "b="],
    ToolFormat.QWEN3_CODER: [xml(WEATHER), "<function=multiply>", "<parameter=a>", "</parameter>", "</function>", "\n"],
    ToolFormat.GEMMA3: [python(PRODUCT), "multiply(a=1", ")", "```", "\n", "print(default_api.", "'"],
    ToolFormat.FUNCTIONGEMMA: ["call:", "multiply{a:", "}", "1", ",", "[", "]", "<es"],
    ToolFormat.GEMMA4: ["call:", "multiply{a:", "}", "1", ",", "[", "]", "<|"],
    ToolFormat.PHI4_MINI: ["functools", "[", "]", "{", written(WEATHER)],
}


@st.composite
def cut_markup(draw: st.DrawFn) -> tuple[ToolFormat, str, list[int]]:
    format = draw(st.sampled_from(ToolFormat))
    parts = [*MARKERS[format], in_format(format, [WEATHER, PRODUCT]), *OWN_PARTS.get(format, ["{", "}", "\n```", "f"])]
    text = "".join(draw(st.lists(st.sampled_from(parts) | st.sampled_from([" ", "\n", "text"]), max_size=8)))
    return format, text, sorted(draw(st.sets(st.integers(0, len(text)))))


@settings(max_examples=400)
@given(cut_markup())
def test_how_a_familys_markup_is_cut_into_pieces_changes_nothing(case: tuple[ToolFormat, str, list[int]]) -> None:
    format, text, cuts = case
    expected = without_ids(parse(text, format, SCHEMAS))
    for places in (cuts, range(len(text))):
        parser = ToolCallParser(format, SCHEMAS)
        pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert without_ids(joined([*map(parser.feed, pieces), parser.finish()])) == expected


UNCLOSED = f'<|python_tag|>{written(WEATHER)}{{"name": "get_weather", "arguments": {{"city": "{"a" * 260}'


@example([f"{UNCLOSED}<|python_tag|>{written(WEATHER)}<|python_tag|>"], ToolFormat.LLAMA)
@settings(max_examples=400)
@given(cut_answers(), st.sampled_from(ToolFormat))
def test_how_the_answer_is_cut_into_pieces_changes_nothing(pieces: list[str], format: ToolFormat) -> None:
    text = "".join(pieces)
    expected = without_ids(parse(text, format, SCHEMAS))
    for cut in (pieces, list(text)):
        parser = ToolCallParser(format, SCHEMAS)
        assert without_ids(joined([*map(parser.feed, cut), parser.finish()])) == expected


@given(st.text(st.sampled_from("`{}[]\"<>|:,; \nabjson/_tool'"), max_size=60), st.sampled_from(ToolFormat))
def test_text_without_calls_comes_back_unchanged(text: str, format: ToolFormat) -> None:
    assert parse(text, format) == ParsedText(text)


VALUES = st.none() | st.integers() | st.text(max_size=20) | st.just([[], {}])
IN_JSON = [
    format
    for format in ToolFormat
    if format not in (ToolFormat.PYTHONIC, ToolFormat.QWEN3_CODER, ToolFormat.GEMMA3, *GEMMA)
]


@given(
    st.sampled_from(IN_JSON),
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=5), VALUES)),
        min_size=1,
        max_size=3,
    ),
)
def test_calls_written_in_the_format_are_read_back(format: ToolFormat, expected: list[tuple[str, Any]]) -> None:
    assert without_ids(parse(in_format(format, expected), format)) == ("", expected, [])


TYPES = {"nothing": "null", "count": "integer", "from": "string", "items": "array", "flag": "boolean", "x": "number"}
TYPED = {
    "nothing": st.none(),
    "count": st.integers(),
    "from": st.text(st.characters(exclude_categories=("Cs",)), max_size=20).filter(lambda text: "<" not in text),
    "items": st.lists(st.integers() | st.booleans() | st.sampled_from([[], {"a": ["b"]}])),
    "flag": st.booleans(),
    "x": st.floats(allow_nan=False, allow_infinity=False),
}
EVERY_TYPE = {
    name: {"type": "object", "properties": {key: {"type": each} for key, each in TYPES.items()}} for name in NAMES
}


@given(
    st.sampled_from(ToolFormat),
    st.lists(st.tuples(st.sampled_from(NAMES), st.fixed_dictionaries({}, optional=TYPED)), min_size=1, max_size=3),
)
def test_values_of_every_type_are_read_back(format: ToolFormat, expected: list[tuple[str, Any]]) -> None:
    """Some formats write all values as text, and know them by the tools' schemas."""
    text = in_format(format, expected)
    assert without_ids(parse(text, format, EVERY_TYPE)) == ("", expected, [])
    parser = ToolCallParser(format, EVERY_TYPE)
    assert without_ids(joined([*map(parser.feed, text), parser.finish()])) == ("", expected, [])


@pytest.mark.parametrize(
    ("template", "format"),
    [
        (None, ToolFormat.HERMES),
        ("{{ messages }}", ToolFormat.HERMES),
        ('<|im_start|>...{"name": ...}</tool_call> <tool_call>', ToolFormat.HERMES),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", ToolFormat.MISTRAL),
        ("<|start_header_id|>assistant<|end_header_id|> <|python_tag|>", ToolFormat.LLAMA),
        ("<|start_header_id|>assistant<|end_header_id|>", ToolFormat.LLAMA),
        ("<|start_header_id|> <|python_tag|> write [func_name1(params_name1=value)]", ToolFormat.PYTHONIC),
        ("<|header_start|>assistant<|header_end|> <|python_start|> [func_name1(a=1)]", ToolFormat.PYTHONIC),
        ("<|header_start|>assistant<|header_end|> <|python_start|> <|python_end|>", ToolFormat.LLAMA4),
        ("<|header_start|>user<|header_end|>", ToolFormat.LLAMA4),
        ("<tools> <tool_call>\n<function=name>\n<parameter=key>", ToolFormat.QWEN3_CODER),
        ("<seed:tool_call>\n<function=name>\n<parameter=key>", ToolFormat.HERMES),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>\n```json", ToolFormat.DEEPSEEK_V3),
        ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>", ToolFormat.DEEPSEEK_V31),
        ("<start_of_turn>user {{ '<start_function_call>call:' }}", ToolFormat.FUNCTIONGEMMA),
        ("<|turn>model {{ '<|tool_call>call:' }}", ToolFormat.GEMMA4),
        ("<start_of_turn>model", ToolFormat.GEMMA3),
        ("<|system|> <|tool|>{{ tools }}<|/tool|>", ToolFormat.PHI4_MINI),
        ("prefix calls with functools", ToolFormat.PHI4_MINI),
        ("<|start_of_role|> respond with <|tool_call|> and a list", ToolFormat.GRANITE),
        ("<|start_of_role|> within <tool_call></tool_call>", ToolFormat.HERMES),
    ],
)
def test_the_format_is_known_from_the_chat_template(template: str | None, format: ToolFormat) -> None:
    assert detect_format(template) is format


@pytest.mark.parametrize("format", ToolFormat)
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "add", "arguments": {"code": "%s"}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"code": "%s',
        '<tool_call>{"name": "add", "arguments": {"code": "an "unescaped" quote: %s"}}',
        '{"name": "add", "arguments": {"code": "%s"}}',
        '```json\n{"name": "add", "arguments": {"code": "%s"}}\n```',
        '[TOOL_CALLS][{"name": "add", "arguments": {"code": "%s"}}]',
        '<|python_tag|>{"name": "add", "parameters": {"code": "%s"}}',
        '{"other": [%s]}',
    ],
)
@pytest.mark.parametrize("content", ["print(1) ", "{ [1] } ", '\\\\n\\"x\\" ', "}}}} "])
def test_the_work_grows_in_proportion_to_the_length_of_a_call(
    monkeypatch: pytest.MonkeyPatch, format: ToolFormat, text: str, content: str
) -> None:
    """Counted in characters that the JSON decoder is given."""
    given = 0
    decode = json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, s: str, idx: int = 0) -> Any:
        nonlocal given
        given += len(s) - idx
        return decode(self, s, idx)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    answer = text % (content * 2000)
    parser = ToolCallParser(format, ["add"])
    for start in range(0, len(answer), 3):
        parser.feed(answer[start : start + 3])
    parser.finish()
    assert given <= 50 * len(answer)
