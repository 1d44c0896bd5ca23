"""Models that reason before they answer: the reasoning comes apart from the text, with the families' real templates."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import pytest
from conftest import make_model
from drop_in_cases import prompt_of
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ThinkingBlock
from reasoning_cases import POPULATION, QUESTION, TEMPLATES, saying

from ssd_engine import GenerationParams, SSDEngine
from ssd_engine.answers import harmony
from ssd_engine.answers.answer_format import AnswerFormat, ReasoningStage
from ssd_engine.answers.parsed_text import ParsedText
from ssd_engine.answers.reasoning import ReasoningFormat, detect_reasoning
from ssd_engine.answers.tool_formats import ToolFormat
from ssd_engine.config import Grammar
from ssd_engine.errors import InvalidRequestError
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM
from ssd_integrations.llama_index.messages import to_engine_messages

FAMILIES = {
    "qwen3": "<think>\nTwo and two is four.\n</think>\n\nFour.",
    "deepseek-r1-distill": "Two and two is four.\n</think>\n\nFour.",  # the template opens it
    "gpt-oss": "<|channel|>analysis<|message|>Two and two is four.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Four.",
}


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest) -> SSDEngine:
    family = request.param
    with saying(family, [({"conversation": QUESTION}, FAMILIES[family])]) as engine:
        yield engine


def test_reasoning_comes_apart_from_the_text(engine: SSDEngine) -> None:
    result = engine.generate(QUESTION)
    assert (result.reasoning, result.text) == ("Two and two is four.", "Four.")
    assert result.finish_reason == "stop"
    assert 0 < result.usage.reasoning_tokens < result.usage.completion_tokens
    assert result.usage.completion_tokens == len(result.trace.schemes)  # it is decoded, and traced, as all else


def test_reasoning_is_streamed_before_the_text(engine: SSDEngine) -> None:
    pieces = list(engine.stream(QUESTION))
    assert "".join(piece.reasoning for piece in pieces) == "Two and two is four."
    assert "".join(piece.text for piece in pieces) == "Four."
    last_reasoning = max(i for i, piece in enumerate(pieces) if piece.reasoning)
    assert last_reasoning <= min(i for i, piece in enumerate(pieces) if piece.text)
    assert sum(bool(piece.reasoning) for piece in pieces) > 2


def test_langchain_has_reasoning_as_a_standard_block(engine: SSDEngine) -> None:
    model = ChatSSD(engine=engine)
    answer = model.invoke("Two and two?")
    whole = sum(model.stream("Two and two?"), AIMessageChunk(""))
    for message in (answer, whole):
        assert message.content == "Four."
        assert message.additional_kwargs["reasoning_content"] == "Two and two is four."
        assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]
        assert message.usage_metadata["output_token_details"]["reasoning"] > 0


def test_llama_index_has_reasoning_as_a_thinking_block(engine: SSDEngine) -> None:
    llm = SSDLLM(engine=engine)
    answer = llm.chat([ChatMessage("Two and two?")])
    *_, last = parts = list(llm.stream_chat([ChatMessage("Two and two?")]))
    for response in (answer, last):
        assert response.message.content == "Four."
        thinking = [block.content for block in response.message.blocks if isinstance(block, ThinkingBlock)]
        assert thinking == ["Two and two is four."]
    assert "".join(part.additional_kwargs.get("thinking_delta", "") for part in parts) == "Two and two is four."
    assert "".join(part.delta or "" for part in parts) == "Four."


def test_an_answer_that_ends_within_its_reasoning_says_so(engine: SSDEngine) -> None:
    result = engine.generate(QUESTION, GenerationParams(max_new_tokens=12))
    assert result.text == ""
    assert result.reasoning
    assert "Two and two is four.".startswith(result.reasoning)
    message = ChatSSD(engine=engine, max_tokens=12).invoke("Two and two?")
    assert "still reasoning at max_tokens=12" in message.text
    assert "still reasoning" in str(
        SSDLLM(engine=engine, max_tokens=12).chat([ChatMessage("Two and two?")]).message.content
    )


CALL = {
    "qwen3": "<think>\nI ask.\n</think>\n\n"
    '<tool_call>\n{"name": "population", "arguments": {"city": "Lyon"}}\n</tool_call>',
    "gpt-oss": "<|channel|>analysis<|message|>I ask.<|end|><|start|>assistant"
    '<|channel|>commentary to=functions.population <|constrain|>json<|message|>{"city": "Lyon"}<|call|>',
}
JSON = {
    "qwen3": '<think>\nFour.\n</think>\n\n{"sum": 4}',
    "deepseek-r1-distill": 'Four.\n</think>\n\n{"sum": 4}',
    "gpt-oss": '<|channel|>analysis<|message|>Four.<|end|><|start|>assistant<|channel|>final<|message|>{"sum": 4}',
}
SUM = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}


@pytest.mark.parametrize("family", JSON)
def test_a_grammar_holds_for_what_follows_the_reasoning(family: str) -> None:
    with saying(family, [({"conversation": QUESTION}, JSON[family])]) as engine:
        result = engine.generate(QUESTION, GenerationParams(grammar=Grammar(json_schema=SUM)))
        assert (result.reasoning, result.text) == ("Four.", '{"sum": 4}')
        again = engine.generate(QUESTION, GenerationParams(grammar=Grammar(regex="yes|no"), max_new_tokens=60))
        assert again.reasoning == "Four."
        assert again.text in ("yes", "no")


@pytest.mark.parametrize("choice", ["auto", "any", "population"])
@pytest.mark.parametrize("family", CALL)
def test_a_call_may_follow_the_reasoning(family: str, choice: str) -> None:
    with saying(family, [({"conversation": QUESTION, "tools": [POPULATION]}, CALL[family])]) as engine:
        pieces = list(engine.stream(QUESTION, GenerationParams(tool_choice=choice), tools=[POPULATION]))
        result = pieces[-1].result
        assert result is not None
        assert (result.reasoning, result.text, result.finish_reason) == ("I ask.", "", "tool_calls")
        assert [(call.name, call.arguments) for call in result.tool_calls] == [("population", {"city": "Lyon"})]
        assert "".join(piece.text for piece in pieces) == ""


def test_reasoning_is_turned_on_and_off() -> None:
    thinks = "<think>\nTwo and two is four.\n</think>\n\nFour."
    answers = [
        ({"conversation": QUESTION}, thinks),
        ({"conversation": QUESTION, "enable_thinking": False}, "It is four."),
    ]
    with saying("qwen3", answers) as engine:
        model = ChatSSD(engine=engine)
        assert model.invoke("Two and two?", reasoning=False).content == "It is four."
        assert model.invoke("Two and two?", reasoning=True).content == "Four."
        quiet = ChatSSD(engine=engine, reasoning=False).invoke("Two and two?")
        assert (quiet.content, "reasoning_content" in quiet.additional_kwargs) == ("It is four.", False)
        assert SSDLLM(engine=engine, reasoning=False).complete("Two and two?").text == "It is four."


@pytest.mark.parametrize(
    ("family", "reasoning", "said"),
    [
        ("qwen3", "low", "reasoning='low': this model's reasoning has no levels; give True or False"),
        ("deepseek-r1-distill", False, "reasoning=False: this model always reasons; leave it out"),
        ("gpt-oss", False, "reasoning=False: this model always reasons; give 'low' for little of it"),
    ],
)
def test_reasoning_that_a_model_cannot_have_is_told(family: str, reasoning: bool | str, said: str) -> None:
    with (
        saying(family, [({"conversation": QUESTION}, FAMILIES[family])]) as engine,
        pytest.raises(InvalidRequestError, match=re.escape(said)),
    ):
        engine.generate(QUESTION, GenerationParams(reasoning=reasoning))


def test_a_model_without_reasoning_takes_only_its_absence(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=4)
    result = tiny_engine.generate(QUESTION, params.replaced(reasoning=False))
    assert result.token_ids == tiny_engine.generate(QUESTION, params).token_ids
    with pytest.raises(InvalidRequestError, match="reasoning=True: this model's chat template knows no reasoning"):
        tiny_engine.generate(QUESTION, params.replaced(reasoning=True))


def test_the_effort_reaches_the_template() -> None:
    with saying("gpt-oss", [({"conversation": QUESTION}, FAMILIES["gpt-oss"])]) as engine:
        for effort in ("low", "high"):
            prompt = prompt_of(ChatSSD(engine=engine, reasoning=effort), [HumanMessage("Two and two?")])
            assert f"Reasoning: {effort}" in prompt


def test_past_reasoning_is_read_again_only_where_the_template_wants_it() -> None:
    """Qwen3 goes on thinking where it stopped for a tool, and forgets what it thought before the last question."""
    asked = AIMessage("", tool_calls=[{"name": "population", "args": {"city": "Lyon"}, "id": "c1"}])
    thread = [
        HumanMessage("How many live in Lyon?"),
        asked.model_copy(update={"additional_kwargs": {"reasoning_content": "I ask the tool."}}),
        ToolMessage("522000", tool_call_id="c1"),
    ]
    later = [*thread, AIMessage("522,000."), HumanMessage("Thanks.")]
    with saying("qwen3", [({"conversation": QUESTION}, FAMILIES["qwen3"])]) as engine:
        model = ChatSSD(engine=engine)
        assert "<think>\nI ask the tool.\n</think>" in prompt_of(model, thread)
        assert "I ask the tool." not in prompt_of(model, later)
        block = AIMessage([{"type": "reasoning", "reasoning": "I ask the tool."}], tool_calls=asked.tool_calls)
        assert "I ask the tool." in prompt_of(model, [thread[0], block, thread[2]])
    with saying("gpt-oss", [({"conversation": QUESTION}, FAMILIES["gpt-oss"])]) as engine:
        model = ChatSSD(engine=engine)
        assert "<|channel|>analysis<|message|>I ask the tool.<|end|>" in prompt_of(model, thread)
        assert "I ask the tool." not in prompt_of(model, later)


def test_llama_index_hands_back_thinking_blocks() -> None:
    blocks = [ThinkingBlock(content="I ask the tool."), TextBlock(text="A moment.")]
    thread = [ChatMessage("How many?"), ChatMessage(role="assistant", blocks=blocks)]
    assert to_engine_messages(thread)[1]["reasoning_content"] == "I ask the tool."


def test_a_user_cannot_open_the_reasoning() -> None:
    """What a message says of tags stays text: the answer to it is no reasoning."""
    asked = [{"role": "user", "content": "What does <think> mean?"}]
    with saying("qwen3", [({"conversation": asked}, "It is a tag.")]) as engine:
        result = engine.generate(asked)
        assert not result.reasoning


def test_a_given_beginning_may_be_reasoning() -> None:
    parser = AnswerFormat(ToolFormat.HERMES, ReasoningFormat.THINK)
    assert parser.reasoning_stage("<|im_start|>assistant\n<think>\nOkay, ", "<think>\nOkay, ") == "open"
    assert parser.reasoning_stage("... </think>\n\nThe", "<think>\nOkay.\n</think>\n\nThe") == "over"


def test_a_refusal_shows_no_reasoning(wary: SSDEngine) -> None:
    """What was streamed is gone, but the finished message holds the refusal alone."""
    tokenizer = copy.deepcopy(wary.tokenizer)
    tokenizer.chat_template = (TEMPLATES / "deepseek-r1-distill.jinja").read_text(encoding="utf-8")
    size, config = len(tokenizer), wary.config
    with SSDEngine(make_model(1, size), make_model(99, size), tokenizer, config=config) as engine:
        params = GenerationParams(max_new_tokens=60, on_risk="refuse", refusal_text="No.")
        pieces = list(engine.stream(QUESTION, params))
        result = pieces[-1].result
        assert result is not None
        assert (result.finish_reason, result.text, result.reasoning) == ("refused", "No.", "")
        assert pieces[-1].text.endswith("No.")


# The parsers alone: what comes out depends on the text, never on how it was cut.

_WORDS = st.text("ab \n<>/|{}", max_size=12)
_THINK_PARTS = st.lists(
    _WORDS | st.sampled_from(["<think>", "</think>", "<tool_call>", '{"name": "population", "arguments": {}}']),
    max_size=8,
)
_HARMONY_PARTS = st.lists(
    _WORDS
    | st.sampled_from(
        [*harmony.MARKERS, "analysis", "final", "commentary to=functions.population ", "assistant", '{"city": "Lyon"}']
    ),
    max_size=14,
)


def outcome(format: AnswerFormat, stage: ReasoningStage, pieces: Sequence[str]) -> tuple[object, ...]:
    parser = format.parser([POPULATION], stage)
    assert parser is not None
    parsed = ParsedText()
    for piece in pieces:
        parsed += parser.feed(piece)
    parsed += parser.finish()
    calls = [(call.name, call.arguments) for call in parsed.tool_calls]
    broken = [(call.name, call.text) for call in parsed.invalid_tool_calls]
    return parsed.reasoning, parsed.text, calls, broken, list(parser.spans)


@pytest.mark.parametrize("stage", ["ahead", "open", "over"])
@given(parts=_THINK_PARTS)
def test_tagged_answers_read_alike_however_they_are_cut(stage: ReasoningStage, parts: list[str]) -> None:
    format, text = AnswerFormat(ToolFormat.HERMES, ReasoningFormat.THINK), "".join(parts)
    assert outcome(format, stage, list(text)) == outcome(format, stage, [text]) == outcome(format, stage, parts)


@pytest.mark.parametrize("stage", ["ahead", "over"])
@given(parts=_HARMONY_PARTS)
def test_harmony_reads_alike_however_it_is_cut(stage: ReasoningStage, parts: list[str]) -> None:
    format, text = AnswerFormat(ToolFormat.HERMES, ReasoningFormat.HARMONY), "".join(parts)
    assert outcome(format, stage, list(text)) == outcome(format, stage, [text]) == outcome(format, stage, parts)


@pytest.mark.parametrize(
    ("text", "reasoning", "said"),
    [
        ("<think>a</think>b", "a", "b"),
        ("\n<think>\na\n\nb\n</think>\n\nc\n", "a\n\nb", "c\n"),
        ("<think>\n\n</think>\n\nc", "", "c"),
        ("c <think>d</think>", "", "c <think>d</think>"),  # an answer about tags
        ("<think>a", "a", ""),
        ("  c", "", "  c"),
    ],
)
def test_tagged_reasoning_stands_at_the_head_alone(text: str, reasoning: str, said: str) -> None:
    read = outcome(AnswerFormat(ToolFormat.HERMES, ReasoningFormat.THINK), "ahead", [text])
    assert read[:2] == (reasoning, said)


@pytest.mark.parametrize(
    ("text", "reasoning", "said", "calls"),
    [
        ("<|channel|>final<|message|>Hi.", "", "Hi.", []),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
            "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>c",
            "a\n\nb",
            "I look.\n\nc",
            [],
        ),
        (
            ' to=functions.population<|channel|>commentary json<|message|>{"city": "Bonn"}<|call|>',
            "",
            "",
            [("population", {"city": "Bonn"})],
        ),
        ("Hello there", "", "Hello there", []),
    ],
)
def test_harmony_channels(text: str, reasoning: str, said: str, calls: list[object]) -> None:
    read = outcome(AnswerFormat(ToolFormat.HERMES, ReasoningFormat.HARMONY), "ahead", [text])
    assert read[:3] == (reasoning, said, calls)


@pytest.mark.parametrize(
    ("family", "format"),
    [
        ("qwen3", ReasoningFormat.THINK),
        ("deepseek-r1-distill", ReasoningFormat.THINK),
        ("deepseek-v3.1", ReasoningFormat.THINK),
        ("gpt-oss", ReasoningFormat.HARMONY),
    ],
)
def test_a_template_says_how_its_model_reasons(family: str, format: ReasoningFormat) -> None:
    assert detect_reasoning((TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")) is format
