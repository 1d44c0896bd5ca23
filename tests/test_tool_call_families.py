"""Tool calls as model families write them that do without JSON, or put it between other marks."""

from __future__ import annotations

from typing import Any

import pytest
from tool_call_cases import (
    PRODUCT,
    SCHEMAS,
    WEATHER,
    calls,
    gemma,
    in_format,
    joined,
    parse,
    python,
    without_ids,
    written,
    xml,
)

from ssd_engine.answers.formats.gemma_body import GemmaBody
from ssd_engine.answers.formats.python_body import PythonBody
from ssd_engine.answers.formats.xml_body import XmlBody
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat

DEEPSEEK = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
BEGIN, SEP, END = DEEPSEEK


@pytest.mark.parametrize("format", ToolFormat)
def test_each_familys_calls_are_read_between_text(format: ToolFormat) -> None:
    text = in_format(format, [WEATHER, PRODUCT])
    assert without_ids(parse(text, format, SCHEMAS)) == ("", [WEATHER, PRODUCT], [])
    found = parse(f"Let me see.\n\n{text}", format, SCHEMAS)
    assert without_ids(found) == ("Let me see.", [WEATHER, PRODUCT], [])


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        (ToolFormat.QWEN3_CODER, f"<tool_call>{written(WEATHER)}</tool_call>", [WEATHER]),
        (ToolFormat.QWEN3_CODER, f"{xml(WEATHER)}\n</tool_call>", [WEATHER]),
        (ToolFormat.QWEN3_CODER, f"{xml(WEATHER)}\n{xml(PRODUCT)}", [WEATHER, PRODUCT]),
        (ToolFormat.QWEN3_CODER, f"<tool_call>\n{xml(WEATHER)}\n{xml(PRODUCT)}\n</tool_call>", [WEATHER, PRODUCT]),
        (ToolFormat.QWEN3_CODER, f"<tool_call>{xml(WEATHER)}", [WEATHER]),
        (ToolFormat.QWEN3_CODER, f"<tool_call>{xml(WEATHER).removesuffix('</function>')}</tool_call>", [WEATHER]),
        (ToolFormat.QWEN3_CODER, f"```xml\n{xml(WEATHER)}\n```", [WEATHER]),
        (ToolFormat.PYTHONIC, f"<|python_start|>[{python(WEATHER)}]<|python_end|>", [WEATHER]),
        (ToolFormat.PYTHONIC, f"<|python_start|>{python(WEATHER)}; {python(PRODUCT)}", [WEATHER, PRODUCT]),
        (ToolFormat.PYTHONIC, f"<|python_start|><|python_end|>{written(WEATHER, 'parameters')}", [WEATHER]),
        (ToolFormat.PYTHONIC, f"[\n  {python(WEATHER)},\n  {python(PRODUCT)},\n]\n", [WEATHER, PRODUCT]),
        (ToolFormat.PYTHONIC, python(WEATHER), [WEATHER]),
        (ToolFormat.PYTHONIC, f"```python\n{python(WEATHER)}\n{python(PRODUCT)}\n```", [WEATHER, PRODUCT]),
        (ToolFormat.GEMMA3, f"```tool_code\nprint(default_api.{python(WEATHER)})\n```", [WEATHER]),
        (ToolFormat.GEMMA3, f"```tool_code\n[{python(WEATHER)}, {python(PRODUCT)}]\n```", [WEATHER, PRODUCT]),
        (ToolFormat.GEMMA3, f"[{python(WEATHER)}]", [WEATHER]),
        (ToolFormat.DEEPSEEK_V3, f"{BEGIN}function{SEP}get_weather\n```json\n{{}}\n```{END}", [("get_weather", {})]),
        (ToolFormat.DEEPSEEK_V31, f"{BEGIN}function{SEP}{{}}{END}", [("function", {})]),
        (ToolFormat.DEEPSEEK_V31, f"{BEGIN}{written(WEATHER)}{END}", [WEATHER]),
        (ToolFormat.GEMMA4, f"<|tool_call>{written(WEATHER)}<tool_call|>", [WEATHER]),
        (ToolFormat.GEMMA4, '<|tool_call>call:get_weather{city:"Paris"}', [WEATHER]),
        (ToolFormat.FUNCTIONGEMMA, "<start_function_call>call:get_weather { city : Paris }", [WEATHER]),
        (ToolFormat.PHI4_MINI, f"functools[{written(WEATHER)}]", [WEATHER]),
        (ToolFormat.PHI4_MINI, f"functools [{written(WEATHER)}, {written(PRODUCT)}]\n", [WEATHER, PRODUCT]),
        (ToolFormat.GRANITE, f"<tool_call>[{written(WEATHER)}, {written(PRODUCT)}]", [WEATHER, PRODUCT]),
        (ToolFormat.LLAMA4, f"<|python_start|>{written(WEATHER, 'parameters')}<|python_end|>", [WEATHER]),
    ],
)
def test_variants_that_models_write_are_calls_too(format: ToolFormat, text: str, expected: list[Any]) -> None:
    for pieces in ([text], [*text]):
        parser = ToolCallParser(format, SCHEMAS)
        found = joined([*map(parser.feed, pieces), parser.finish()])
        assert without_ids(found) == ("", expected, [])


@pytest.mark.parametrize(
    "text",
    [
        "launch(at='dawn')",
        "[launch(at='dawn')]",
        "[get_weather('Paris')]",
        "[get_weather(city=open('/etc/passwd'))]",
        "[get_weather(city=1 + 1)]",
        "[get_weather(**{'city': 'Paris'})]",
        "[get_weather(city=f'{x}')]",
        "[get_weather(city=b'x')]",
        "[get_weather(city=1e999)]",
        "[get_weather(city='Paris')] is what I would call.",
        "I would call get_weather(city='Paris')",
        "get_weather is a tool",
        "print(get_weather)",
        "```python\nfor city in cities:\n    get_weather(city=city)\n```",
        "```python\nget_weather(city=city)\n```",
        "```python\nget_weather(city='Paris') + 1\n```",
        "A list:\n[1, 2]\nand\nget",
    ],
)
def test_python_that_calls_no_offered_tool_with_literals_is_text(text: str) -> None:
    for format in (ToolFormat.PYTHONIC, ToolFormat.GEMMA3):
        for pieces in ([text], [*text]):
            parser = ToolCallParser(format, SCHEMAS)
            found = joined([*map(parser.feed, pieces), parser.finish()])
            assert without_ids(found) == (text, [], [])


def test_python_is_a_call_in_families_alone_that_write_it() -> None:
    text = f"```python\n{python(WEATHER)}\n```"
    for format in ToolFormat:
        expected = [] if format not in (ToolFormat.PYTHONIC, ToolFormat.GEMMA3) else [WEATHER]
        assert calls(parse(text, format, SCHEMAS)) == expected


@pytest.mark.parametrize("text", ["functools is a module", "functools[0]", "from functools import cache", "func"])
def test_a_word_before_json_is_text_where_no_call_follows(text: str) -> None:
    assert without_ids(parse(text, ToolFormat.PHI4_MINI)) == (text, [], [])


def test_the_tag_of_a_function_that_is_not_offered_is_text() -> None:
    text = "Write <function=launch> there."
    assert without_ids(parse(text, ToolFormat.QWEN3_CODER)) == (text, [], [])


@pytest.mark.parametrize(
    ("format", "text", "name", "inner", "error"),
    [
        (ToolFormat.QWEN3_CODER, "<tool_call>\nlook\n</tool_call>", None, "look", "Expecting <function="),
        (ToolFormat.QWEN3_CODER, f"<tool_call>{xml(WEATHER)[:-20]}", "get_weather", xml(WEATHER)[:-20], "ended within"),
        (
            ToolFormat.QWEN3_CODER,
            "<tool_call><function=f><parameter=x>1</tool_call>",
            "f",
            "<function=f><parameter=x>1",
            "ended within",
        ),
        (ToolFormat.QWEN3_CODER, "<tool_call><function=f>1</tool_call>", "f", "<function=f>1", "Expecting <parameter="),
        (ToolFormat.QWEN3_CODER, "<tool_call><function=></function>", None, "<function=></function>", "names no tool"),
        (ToolFormat.PYTHONIC, "<|python_start|>import os<|python_end|>", None, "import os", "Expecting a call"),
        (ToolFormat.PYTHONIC, "<|python_start|>[f(1)]", "f", "f(1)", "name=value"),
        (ToolFormat.PYTHONIC, "<|python_start|>[f(x=y)]", "f", "f(x=y)", "'y' is none"),
        (ToolFormat.PYTHONIC, "<|python_start|>[f(x=1 1)]", "f", "f(x=1 1)", "no literals of Python"),
        (ToolFormat.PYTHONIC, "<|python_start|>[f(x='1", "f", "f(x='1", "ended within"),
        (ToolFormat.PYTHONIC, "<|python_start|>[f(x=1<|python_end|>", "f", "f(x=1", "not closed"),
        (ToolFormat.PYTHONIC, "[get_weather(city='Pa", "get_weather", "get_weather(city='Pa", "ended within"),
        (ToolFormat.PYTHONIC, "```\nget_weather(city=[1\n```", "get_weather", "get_weather(city=[1", "not closed"),
        (ToolFormat.GEMMA3, "```tool_code\nprint('hi')\n```", "print", "print('hi')", "name=value"),
        (
            ToolFormat.DEEPSEEK_V31,
            f"{BEGIN}get_weather{SEP}{{x}}{END}",
            "get_weather",
            f"get_weather{SEP}{{x}}",
            "double",
        ),
        (ToolFormat.DEEPSEEK_V31, f"{BEGIN}get_weather{END}", None, "get_weather", "Expecting a JSON object"),
        (
            ToolFormat.DEEPSEEK_V3,
            f'{BEGIN}function{SEP}f\n```json\n{{"a": "',
            "f",
            f'function{SEP}f\n```json\n{{"a": "',
            "",
        ),
        (
            ToolFormat.FUNCTIONGEMMA,
            "<start_function_call>call:f{x}<end_function_call>",
            "f",
            "call:f{x}",
            "Expecting :",
        ),
        (
            ToolFormat.FUNCTIONGEMMA,
            "<start_function_call>call:f{x:<escape>1",
            "f",
            "call:f{x:<escape>1",
            "ended within",
        ),
        (ToolFormat.GEMMA4, "<|tool_call>call:f{x:[1}<tool_call|>", "f", "call:f{x:[1}", "Expecting , or ]"),
        (ToolFormat.GEMMA4, "<|tool_call>call:{}<tool_call|>", None, "call:{}", "names no tool"),
        (ToolFormat.GEMMA4, "<|tool_call>call:f{x:" + "[" * 99, "f", "call:f{x:" + "[" * 99, "Too many levels"),
        (ToolFormat.PHI4_MINI, "<|tool_call|>[{]<|/tool_call|>", None, "{]", "double quotes"),
        (ToolFormat.GRANITE, f"<|tool_call|>[{written(WEATHER)[:-2]}", "get_weather", written(WEATHER)[:-2], ""),
    ],
)
def test_markup_around_no_whole_call_is_an_invalid_call(
    format: ToolFormat, text: str, name: str | None, inner: str, error: str
) -> None:
    for pieces in ([text], [*text]):
        parser = ToolCallParser(format, ["get_weather"])
        found = joined([*map(parser.feed, pieces), parser.finish()])
        assert (found.text, found.tool_calls) == ("", ())
        [invalid] = found.invalid_tool_calls
        assert (invalid.name, invalid.text) == (name, inner)
        assert error in invalid.error


@pytest.mark.parametrize("format", [format for format in ToolFormat if format is not ToolFormat.PYTHONIC])
def test_what_follows_a_broken_call_is_read_on(format: ToolFormat) -> None:
    call = in_format(format, [WEATHER])
    found = parse(f"{call[: call.index('Paris') - 2]}{call}", format, SCHEMAS)
    assert calls(found) == [WEATHER]
    assert len(found.invalid_tool_calls) == 1


@pytest.mark.parametrize(
    ("format", "before", "call", "behind"),
    [
        (ToolFormat.QWEN3_CODER, "<tool_call>\n", xml(WEATHER), "\n</tool_call>"),
        (ToolFormat.FUNCTIONGEMMA, "<start_function_call>", gemma(WEATHER, "<escape>"), "<end_function_call>"),
        (ToolFormat.PYTHONIC, "<|python_start|>[", python(WEATHER), "]<|python_end|>"),
        (ToolFormat.GEMMA3, "```tool_code\n", python(WEATHER), "\n```"),
        (ToolFormat.DEEPSEEK_V31, BEGIN, f'get_weather{SEP}{{"city": "Paris"}}', END),
    ],
)
def test_a_call_is_given_no_later_than_its_closing_marker(
    format: ToolFormat, before: str, call: str, behind: str
) -> None:
    """Also where it is long, so that not every piece is looked at."""
    parser = ToolCallParser(format, SCHEMAS)
    long = call.replace("Paris", "Paris" * 200)
    found = [parser.feed(piece) for piece in f"{before}{long}{behind}"]
    assert [name for name, _ in calls(joined(found))] == ["get_weather"]


@pytest.mark.parametrize(
    ("body", "format", "text"),
    [
        (XmlBody, ToolFormat.QWEN3_CODER, "<tool_call><function=add>\n<parameter=code>\n%s\n</parameter>\n</function>"),
        (XmlBody, ToolFormat.QWEN3_CODER, "<tool_call><function=add>\n<parameter=code>\n%s"),
        (PythonBody, ToolFormat.PYTHONIC, "<|python_start|>[add(code='%s')]"),
        (PythonBody, ToolFormat.PYTHONIC, "add(code='%s')"),
        (PythonBody, ToolFormat.PYTHONIC, "add(code=[%s"),
        (PythonBody, ToolFormat.GEMMA3, "```tool_code\nadd(code='%s')\n```"),
        (GemmaBody, ToolFormat.GEMMA4, '<|tool_call>call:add{code:<|"|>%s<|"|>}<tool_call|>'),
        (GemmaBody, ToolFormat.GEMMA4, "<|tool_call>call:add{code:[%s"),
    ],
)
@pytest.mark.parametrize("content", ["print(1) ", "{ [1] } ", "a </parameter> ", "}}}} "])
def test_the_work_grows_in_proportion_to_the_length_of_a_call(
    monkeypatch: pytest.MonkeyPatch, body: Any, format: ToolFormat, text: str, content: str
) -> None:
    """Counted in characters that are given to be read."""
    given = 0
    read = body.read

    def counted(self: Any, text: str, schemas: Any) -> Any:
        nonlocal given
        given += len(text)
        return read(self, text, schemas)

    monkeypatch.setattr(body, "read", counted)
    answer = text % (content * 2000)
    parser = ToolCallParser(format, ["add"])
    for start in range(0, len(answer), 3):
        parser.feed(answer[start : start + 3])
    parser.finish()
    assert given <= 50 * len(answer)


@pytest.mark.parametrize(
    "nonsense", ["[" * 100_000, "f(a=" * 20_000, "{a:" * 50_000, "</parameter>" * 20_000, "'" * 99_999]
)
@pytest.mark.parametrize("format", ToolFormat)
def test_endless_nonsense_in_a_call_is_survived(format: ToolFormat, nonsense: str) -> None:
    start, _, _ = in_format(format, [WEATHER]).partition("Paris")
    found = parse(start + nonsense, format, SCHEMAS)
    assert found.text or found.invalid_tool_calls
    assert found.tool_calls == ()
