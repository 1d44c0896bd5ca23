"""Tool calls under a grammar: every family's format, each choice of tools, on small random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import make_model, make_relative, make_tokenizer
from transformers import PreTrainedTokenizerFast

from ssd_engine import GenerationParams, Grammar, SSDConfig, SSDEngine
from ssd_engine.answers.answer import Answer, AnswerSettings
from ssd_engine.answers.detokenizer import Detokenizer
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat
from ssd_engine.errors import InvalidRequestError
from ssd_engine.grammars.answer_grammar import AnswerGrammar
from ssd_engine.grammars.guide import GrammarCompiler, Guide
from ssd_engine.rule.choice import Choice
from ssd_engine.rule.scheme import Scheme


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": schema}}


SIZE = {"enum": ["small", "large"]}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
TOOLS = [tool("paint", size=SIZE, coats=NUMBER), tool("count", items={"type": "array", "items": NUMBER, "maxItems": 3})]
QUESTION = [{"role": "user", "content": "What is the weather?"}]

FENCED = '```json\n{\n  "name": "count",\n  "arguments": {"items": [1]}\n}\n```'

MISTRAL = "{% for m in messages %}{{ m.content }}{% endfor %}[TOOL_CALLS] marks a call"
LLAMA = "{% for m in messages %}<|start_header_id|>{{ m.role }} {{ m.content }}{% endfor %}<|python_tag|>"


def with_markers(template: str, *markers: str) -> Callable[[], PreTrainedTokenizerFast]:
    def make() -> PreTrainedTokenizerFast:
        tokenizer = make_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": list(markers)})
        tokenizer.chat_template = template
        return tokenizer

    return make


TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
QWEN3_CODER = TEMPLATE + "<tool_call><function=name><parameter=key>value</parameter></function></tool_call>"
DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)

FAMILIES = {
    "hermes": make_tokenizer,
    "llama": with_markers(LLAMA, "<|python_tag|>"),
    "mistral": with_markers(MISTRAL, "[TOOL_CALLS]"),
    "mistral, named": with_markers(MISTRAL, "[TOOL_CALLS]", "[ARGS]"),
    "mistral, markers in plain text": with_markers(MISTRAL),
}
FURTHER_FAMILIES = {
    "llama 4": with_markers(TEMPLATE + "<|python_start|>", "<|python_start|>", "<|python_end|>"),
    "pythonic": with_markers(TEMPLATE + "[func_name1(...)]"),
    "pythonic, llama 4": with_markers(TEMPLATE + "[func_name1(...)]", "<|python_start|>", "<|python_end|>"),
    "qwen3-coder": with_markers(QWEN3_CODER),
    "deepseek v3": with_markers(TEMPLATE + "```json" + DEEPSEEK[0], *DEEPSEEK),
    "deepseek v3.1": with_markers(TEMPLATE + DEEPSEEK[0], *DEEPSEEK),
    "gemma 3": with_markers(TEMPLATE + "<start_of_turn>"),
    "functiongemma": with_markers(
        TEMPLATE + "<start_function_call>", "<start_function_call>", "<end_function_call>", "<escape>"
    ),
    "functiongemma, marks in plain text": with_markers(TEMPLATE + "<start_function_call>"),
    "gemma 4": with_markers(TEMPLATE + "<|tool_call>", "<|tool_call>", "<tool_call|>", '<|"|>'),
    "phi-4-mini": with_markers(TEMPLATE + "<|tool|><|/tool|>", "<|tool_call|>", "<|/tool_call|>"),
    "granite": with_markers(TEMPLATE + "<|tool_call|>", "<|tool_call|>"),
}


def engine_of(tokenizer: PreTrainedTokenizerFast) -> SSDEngine:
    target = make_model(1, len(tokenizer))
    return SSDEngine(target, make_relative(target, 2, 0.15), tokenizer, name="tiny")


def guide_of(
    tokenizer: PreTrainedTokenizerFast, params: GenerationParams, *, has_result: bool = False
) -> tuple[Guide, int]:
    """A guide at the beginning of an answer with TOOLS on offer, and the id of the token that ends it."""
    eos_id = tokenizer.convert_tokens_to_ids(tokenizer.eos_token)
    grammar = AnswerGrammar(ToolFormat.HERMES, tokenizer.added_tokens_encoder, set(tokenizer.all_special_ids))
    source = grammar.source(params, TOOLS, has_result=has_result)
    assert source is not None
    return GrammarCompiler(tokenizer, len(tokenizer), [eos_id]).compile(source), eos_id


def follow(guide: Guide, tokenizer: PreTrainedTokenizerFast, written: str) -> str:
    """Let the guide go along with a text; what is left where it goes no further."""
    token_ids = tokenizer(written, add_special_tokens=False).input_ids
    while token_ids and guide.allowed[token_ids[0]]:
        guide.advance([token_ids.pop(0)])
    return str(tokenizer.decode(token_ids))


def assert_valid(name: str, arguments: dict[str, Any]) -> None:
    if name == "paint":
        assert arguments.keys() == {"size", "coats"}
        assert arguments["size"] in SIZE["enum"]
        assert 0 <= arguments["coats"] <= 99
    else:
        assert name == "count"
        assert arguments.keys() == {"items"}
        assert all(0 <= item <= 99 for item in arguments["items"])


@pytest.mark.parametrize("family", FAMILIES | FURTHER_FAMILIES)
def test_any_always_gives_calls_that_follow_their_schemas(family: str) -> None:
    with engine_of((FAMILIES | FURTHER_FAMILIES)[family]()) as engine:
        for seed in range(6):
            for parallel in (False, True):
                params = GenerationParams(
                    max_new_tokens=400,
                    temperature=1.0,
                    seed=seed,
                    tool_choice="any",
                    parallel_tool_calls=parallel,
                    decoding=("ssd", "speculative", "target")[seed % 3],
                )
                result = engine.generate(QUESTION, params, tools=TOOLS)
                assert result.finish_reason == "tool_calls"
                assert result.tool_calls
                assert result.text == ""
                for call in result.tool_calls:
                    assert_valid(call.name, call.arguments)
                if not parallel:
                    assert len(result.tool_calls) == 1
                    assert not result.invalid_tool_calls
                    assert result.token_ids[-1] in engine.tokenizer.all_special_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_guides_a_call_from_its_marker_on(family: str) -> None:
    """Text is free; but where the model begins a call it ends as a whole one."""
    tokenizer = FAMILIES[family]()
    opened = 0
    with engine_of(tokenizer) as engine:
        marker = {"hermes": "<tool_call>", "llama": "<|python_tag|>"}.get(family, "[TOOL_CALLS]")
        for seed in range(6):
            params = GenerationParams(max_new_tokens=300, temperature=1.0, seed=seed, parallel_tool_calls=False)
            # An answer that goes on from the marker's beginning: the first token is the only one that is not free.
            free = engine.generate(QUESTION, params.model_copy(update={"max_new_tokens": 20}), tools=TOOLS)
            assert free.finish_reason in ("length", "stop", "tool_calls")
            result = engine.generate(QUESTION, params, tools=TOOLS)
            opened += marker in tokenizer.decode(result.token_ids)
            for call in result.tool_calls:
                assert_valid(call.name, call.arguments)
            assert result.finish_reason == "length" or not result.invalid_tool_calls
    if family == "hermes":
        assert opened, "the models never opened a call: this test shows nothing"


@pytest.mark.parametrize(
    ("written", "stopped_at", "may_end"),
    [
        # A call of an offered tool has to follow its schema and to be whole,
        ('{"name": "paint", "arguments": {"size": "huge"}}', "huge", False),
        ('{"name": "paint", "arguments": {"size": "small", "coats": 3}', "", False),
        ('{"name": "paint", "arguments": {"size": "small", "coats": 3}} is it', " is it", True),
        ('Like this:\n```json\n{"name": "count", "arguments": {"items": "none"}}', '"none"', False),
        ('```\n{"name": "count", "arguments": {"items": [1]}}', "", False),
        ('```\n{"name": "count", "arguments": {"items": [1]}}\n```\nDone', "", True),
        ('```json\n{\n  "name": "count",\n  "arguments": {\n    "items": "none"\n  }\n}\n```', '"none"', False),
        ('{\n "name": "count",\n "arguments": {"items": []}\n}\n{"name": "ring"', "ring", False),
        (f"{FENCED}\nand\n{FENCED}\nDone", "", True),
        (f"{FENCED}\nand\n" + FENCED.replace("[1]", '"none"'), '"none"', False),
        ('\n {"name": "paint", "arguments": {"size": "huge"}}', "huge", False),
        # with no blanks without end and no second call that nobody wants,
        ('{"name": "paint", "arguments": {"size": "small", "coats": 3}}\n', "", True),
        ('{"name": "count", "arguments": {' + " " * 99, "  ", False),
        # and all else is free text.
        ('{"name": "Ann", "arguments": 3} is it', "", True),
        ('I write {"name": "paint", "arguments": {"size": "huge"}}', "", True),
        ('```python\n{"name": "paint", "arguments": {"size": "huge"}}', "", True),
    ],
)
def test_auto_guides_calls_without_markup_from_their_arguments_on(
    tokenizer: PreTrainedTokenizerFast, written: str, stopped_at: str, may_end: bool
) -> None:
    guide, eos_id = guide_of(tokenizer, GenerationParams())
    assert follow(guide, tokenizer, written)[:2] == stopped_at[:2]
    assert guide.allowed[eos_id] == may_end


def test_a_named_tool_is_the_one_that_is_called(tiny_engine: SSDEngine) -> None:
    for name in ("paint", "count"):
        params = GenerationParams(max_new_tokens=200, tool_choice=name, parallel_tool_calls=False)
        result = tiny_engine.generate(QUESTION, params, tools=TOOLS)
        assert [call.name for call in result.tool_calls] == [name]


def test_a_tool_without_arguments_is_called_with_none(tiny_engine: SSDEngine) -> None:
    bare = {"type": "function", "function": {"name": "now", "description": "The time."}}
    result = tiny_engine.generate(
        QUESTION, GenerationParams(tool_choice="any", parallel_tool_calls=False), tools=[bare]
    )
    assert [(call.name, call.arguments) for call in result.tool_calls] == [("now", {})]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, "auto"),
        (True, "any"),
        (False, "none"),
        ("required", "any"),
        ({"type": "any"}, "any"),
        ({"type": "function", "function": {"name": "paint"}}, "paint"),
        ({"type": "tool", "name": "paint"}, "paint"),
    ],
)
def test_other_words_for_the_choice_of_tools(said: Any, meant: str) -> None:
    assert GenerationParams(tool_choice=said).tool_choice == meant


@pytest.mark.parametrize("choice", ["any", "weather"])
def test_a_choice_among_no_tools_is_refused(tiny_engine: SSDEngine, choice: str) -> None:
    with pytest.raises(
        InvalidRequestError, match=f"tool_choice='{choice}' is none of the tools on offer: there are none"
    ):
        tiny_engine.generate(QUESTION, GenerationParams(tool_choice=choice))


def test_strict_decides_what_becomes_of_a_schema_that_cannot_be_enforced(tiny_engine: SSDEngine) -> None:
    tools = [tool("paint", coats={"type": "integer", "minimum": 1, "maximum": 3, "not": {"const": 2}})]
    wanted = {"tool_choice": "any", "parallel_tool_calls": False}
    with pytest.raises(InvalidRequestError, match="not"):
        tiny_engine.generate(QUESTION, GenerationParams(strict=True, **wanted), tools=tools)
    result = tiny_engine.generate(QUESTION, GenerationParams(**wanted), tools=tools)
    assert result.tool_calls[0].arguments["coats"] in (1, 2, 3)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x)y"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$ref": "https://elsewhere.example/schema"}}, "required": ["a"]},
    ],
)
@pytest.mark.parametrize("choice", ["auto", "any"])
def test_a_schema_that_no_grammar_can_follow_keeps_no_other_tool_from_being_called(
    tiny_engine: SSDEngine, schema: dict[str, Any], choice: str
) -> None:
    tools = [*TOOLS, {"type": "function", "function": {"name": "odd", "parameters": schema}}]
    params = GenerationParams(max_new_tokens=300, tool_choice=choice, temperature=1.0, seed=2)
    for call in tiny_engine.generate(QUESTION, params, tools=tools).tool_calls:
        if call.name != "odd":
            assert_valid(call.name, call.arguments)
    with pytest.raises(InvalidRequestError, match="cannot be compiled"):
        tiny_engine.generate(QUESTION, params.model_copy(update={"strict": True}), tools=tools)


@pytest.mark.parametrize("word", ["anyOf", "oneOf"])
def test_objects_that_are_described_in_several_places_can_be_called(tiny_engine: SSDEngine, word: str) -> None:
    branches = [{"properties": {"kind": {"const": kind}}, "required": ["kind"]} for kind in ("circle", "square")]
    shape = {"type": "object", "properties": {"width": NUMBER}, "required": ["width"], word: branches}
    tools = [{"type": "function", "function": {"name": "draw", "parameters": shape}}]
    params = GenerationParams(max_new_tokens=400, tool_choice="any", parallel_tool_calls=False, temperature=1.0, seed=0)
    result = tiny_engine.generate(QUESTION, params, tools=tools)
    assert result.finish_reason in ("tool_calls", "length")
    for call in result.tool_calls:
        assert call.arguments["kind"] in ("circle", "square")
        assert call.arguments["width"] in range(100)


def test_with_a_grammar_the_answer_is_a_call_or_follows_it(tiny_engine: SSDEngine) -> None:
    seen = set()
    for seed in range(12):
        params = GenerationParams(
            max_new_tokens=300, temperature=1.5, seed=seed, grammar=Grammar(regex="yes|no"), parallel_tool_calls=False
        )
        result = tiny_engine.generate(QUESTION, params, tools=TOOLS)
        if result.finish_reason == "tool_calls":
            assert_valid(result.tool_calls[0].name, result.tool_calls[0].arguments)
        else:
            assert result.text in ("yes", "no")
        seen.add(result.finish_reason)
    assert seen == {"stop", "tool_calls"}


@pytest.mark.parametrize(
    ("written", "stopped_at", "may_end"),
    [
        ('{"size": "small"}', "", True),
        ('{"name": "paint", "arguments": {"size": "small", "coats": 3}}', "", True),
        ('{"name": "paint", "arguments": {"size": "huge"}}', "huge", False),
        ('{"name": "ring"', "ring", False),
        ('<tool_call>\n{"name": "count", "arguments": {"items": []}}\n</tool_call>', "", True),
    ],
)
def test_beside_a_schema_a_call_may_leave_the_markup_out_too(
    tokenizer: PreTrainedTokenizerFast, written: str, stopped_at: str, may_end: bool
) -> None:
    """Else a model that likes its calls so could give the object alone, and never ask a tool for what is in it."""
    schema = {"type": "object", "properties": {"size": SIZE}, "required": ["size"]}
    guide, eos_id = guide_of(tokenizer, GenerationParams(grammar=Grammar(json_schema=schema)))
    assert follow(guide, tokenizer, written)[:2] == stopped_at[:2]
    assert guide.allowed[eos_id] == may_end


@pytest.mark.parametrize(
    ("written", "stopped_at"),
    [
        ('{"size": "small"}', ""),
        ('{"name": "paint"', "name"),
        ('<tool_call>\n{"name": "count", "arguments": {"items": []}}\n</tool_call>', ""),
    ],
)
def test_beside_a_schema_a_call_behind_a_result_needs_its_markup(
    tokenizer: PreTrainedTokenizerFast, written: str, stopped_at: str
) -> None:
    """Else a model that likes its calls without it makes the same one without end."""
    schema = {"type": "object", "properties": {"size": SIZE}, "required": ["size"]}
    guide, _ = guide_of(tokenizer, GenerationParams(grammar=Grammar(json_schema=schema)), has_result=True)
    assert follow(guide, tokenizer, written)[:2] == stopped_at[:2]


def test_a_call_that_max_tokens_cuts_off_is_no_call(tiny_engine: SSDEngine) -> None:
    whole = tiny_engine.generate(
        QUESTION, GenerationParams(tool_choice="paint", parallel_tool_calls=False), tools=TOOLS
    )
    for limit in range(1, len(whole.token_ids) - 5, 3):
        params = GenerationParams(max_new_tokens=limit, tool_choice="paint", parallel_tool_calls=False)
        result = tiny_engine.generate(QUESTION, params, tools=TOOLS)
        assert result.finish_reason == "length"
        assert not result.tool_calls


def test_without_parallel_calls_the_first_of_several_stands_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    """Not every call is guided, so a model may write more than it was asked for."""
    calls = "\n".join(json.dumps({"name": "now", "arguments": {"i": i}}) for i in range(3))
    for parallel, number in ((True, 3), (False, 1)):
        answer = Answer(
            AnswerSettings(
                params=GenerationParams(parallel_tool_calls=parallel),
                config=SSDConfig(),
                eos_ids=frozenset({tokenizer.eos_token_id}),
                detokenizer=Detokenizer(tokenizer, {tokenizer.eos_token_id}),
                parser=ToolCallParser(ToolFormat.HERMES, ["now"]),
                decode_token=str,
            )
        )
        ids = [*tokenizer(calls, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        piece = answer.add_round([Choice(i, matched=True, scheme=Scheme.INTERSECTION, bin=None) for i in ids])
        assert [call.arguments["i"] for call in piece.tool_calls] == list(range(number))
