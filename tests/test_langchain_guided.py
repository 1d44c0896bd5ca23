"""ChatSSD under grammars and under risk: structured output, tools beside it, refusals, scheme switch events."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import make_model
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from typing_extensions import TypedDict

from ssd_engine import SSDConfig, SSDEngine
from ssd_engine.errors import InvalidRequestError, JailbreakRiskError
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.langchain.response_format import with_schema


class Mood(BaseModel):
    """How someone feels."""

    feeling: Literal["calm", "cross"]
    strength: Literal[1, 2, 3]


class MoodDict(TypedDict):
    """How someone feels."""

    feeling: Literal["calm", "cross"]
    strength: Literal[1, 2, 3]


SCHEMAS = {"pydantic": Mood, "typed dict": MoodDict, "json schema": Mood.model_json_schema()}


@tool
def weather(city: Literal["Oslo", "Rome"]) -> str:
    """Today's weather in a city."""
    return f"sunny in {city}"


@pytest.fixture
def model(tiny_engine: SSDEngine) -> ChatSSD:
    return ChatSSD(engine=tiny_engine, max_tokens=300)


def assert_mood(value: Any, schema: str) -> None:
    assert isinstance(value, Mood if schema == "pydantic" else dict)
    Mood.model_validate(value if isinstance(value, dict) else value.model_dump())


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", SCHEMAS)
async def test_answers_are_objects_by_every_route(model: ChatSSD, schema: str, method: Any) -> None:
    structured = model.with_structured_output(SCHEMAS[schema], method=method)
    value = structured.invoke("How are you?")
    assert_mood(value, schema)
    assert await structured.ainvoke("How are you?") == value
    assert list(structured.stream("How are you?"))[-1] == value
    assert [chunk async for chunk in structured.astream("How are you?")][-1] == value
    assert structured.batch(["How are you?"]) == [value]


def test_a_dict_streams_as_it_grows(model: ChatSSD) -> None:
    chunks = list(model.with_structured_output(MoodDict).stream("How are you?"))
    assert len(chunks) > 1
    assert all(chunk.items() <= chunks[-1].items() or "feeling" in chunk for chunk in chunks)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_cut_within_its_structure_is_an_error_by_every_route(model: ChatSSD, method: Any) -> None:
    whole = model.with_structured_output(MoodDict, method=method, include_raw=True).invoke("How are you?")
    limit = whole["raw"].usage_metadata["output_tokens"] - 4
    structured = model.with_structured_output(MoodDict, method=method, max_tokens=limit)
    with pytest.raises(OutputParserException, match="max_tokens"):
        structured.invoke("How are you?")
    with pytest.raises(OutputParserException, match="max_tokens"):
        list(structured.stream("How are you?"))
    raw = model.with_structured_output(MoodDict, method=method, max_tokens=limit, include_raw=True)
    answer = raw.invoke("How are you?")
    assert answer["parsed"] is None
    assert isinstance(answer["parsing_error"], OutputParserException)
    assert answer["raw"].response_metadata["finish_reason"] == "length"
    *_, last = raw.stream("How are you?")
    assert isinstance(last["parsing_error"], OutputParserException)


def test_an_answer_that_a_stop_string_cut_is_an_error_too(model: ChatSSD) -> None:
    with pytest.raises(OutputParserException, match="a stop string ended it"):
        model.with_structured_output(MoodDict, stop=["strength"]).invoke("How are you?")


def test_a_cache_tells_engines_and_policies_apart(tiny_engine: SSDEngine, wary: SSDEngine) -> None:
    models = [ChatSSD(engine=tiny_engine), ChatSSD(engine=wary), ChatSSD(engine=wary, on_risk=lambda trace: None)]
    models += [ChatSSD(engine=wary, on_risk=functools.partial(lambda trace, word: word, word="refuse"))]
    assert len({each._get_llm_string() for each in models}) == 4
    assert models[3].invoke("Hello", max_tokens=4).text is not None


def test_json_mode_gives_some_object(model: ChatSSD) -> None:
    seen = 0
    for seed in range(8):
        structured = model.with_structured_output(
            None, method="json_mode", include_raw=True, temperature=1.5, seed=seed, max_tokens=60
        )
        answer = structured.invoke("How are you?")
        if answer["raw"].response_metadata["finish_reason"] == "stop":
            seen += 1
            assert answer["parsed"] == json.loads(answer["raw"].text)
        else:
            assert answer["parsing_error"] is not None
    assert seen


def test_tools_beside_a_schema_give_calls_or_the_object(model: ChatSSD) -> None:
    seen = set()
    for seed in range(12):
        structured = model.with_structured_output(
            Mood, tools=[weather], include_raw=True, temperature=1.5, seed=seed, parallel_tool_calls=False
        )
        answer = structured.invoke("How are you?")
        assert answer["parsing_error"] is None
        if calls := answer["raw"].tool_calls:
            assert calls[0]["args"]["city"] in ("Oslo", "Rome")
            assert answer["parsed"] is None
        else:
            assert isinstance(answer["parsed"], Mood)
        seen.add(bool(calls))
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"schema": Mood, "method": "yaml"}, "method='yaml' is none"),
        ({"schema": None}, "schema=None"),
        ({"schema": Mood, "method": "function_calling", "tools": [weather]}, "tools go with method='json_schema'"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(model: ChatSSD, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        model.with_structured_output(**arguments)


def test_a_response_format_that_is_none_is_refused(model: ChatSSD) -> None:
    with pytest.raises(InvalidRequestError, match="response_format="):
        model.invoke("Hello", response_format={"type": "xml"})


def test_the_models_are_told_of_the_schema_once() -> None:
    """In the system message that is there, or in one of its own; json_mode leaves the prompt alone."""
    described = {"type": "json_schema", "json_schema": {"name": "Mood", "schema": Mood.model_json_schema()}}
    (system,) = with_schema([SystemMessage("Be brief.")], described)
    assert system.text.startswith("Be brief.")
    assert "How someone feels." in system.text
    assert with_schema([SystemMessage("Be brief.")], {"type": "json_object"}) == [SystemMessage("Be brief.")]


def test_any_and_parallel_calls(model: ChatSSD) -> None:
    one = model.bind_tools([weather], tool_choice="any", parallel_tool_calls=False).invoke("Hello")
    assert [call["args"].keys() for call in one.tool_calls] == [{"city"}]
    assert one.response_metadata["finish_reason"] == "tool_calls"
    assert not model.bind_tools([weather], tool_choice="none").invoke("Hello", max_tokens=8).tool_calls


def test_a_call_may_name_another_pair(saved_pair: dict[str, str], tmp_path: Path, tokenizer: Any) -> None:
    """A target for the same draft; the model itself stays what it was."""
    other = tmp_path / "other"
    make_model(7, len(tokenizer)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    model = ChatSSD(**saved_pair, max_tokens=12)
    own = model.invoke("Hello")
    named = model.invoke("Hello", model=str(other))
    assert str(other) in named.response_metadata["model_name"]
    assert named.text != own.text
    assert model.invoke("Hello").text == own.text
    assert str(other) not in model.invoke("Hello").response_metadata["model_name"]
    for each in (model, model.model_copy(update={"model": str(other)})):
        each.load().close()


def test_settings_can_be_saved_and_loaded(saved_pair: dict[str, str]) -> None:
    model = ChatSSD(**saved_pair, temperature=0.5, config=SSDConfig(bin_size=3), stop=["."])
    again = load(dumpd(model), allowed_objects=[ChatSSD], valid_namespaces=["ssd_integrations"])
    assert again.dict() == model.dict()


# Risk


class Switches(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.seen.append((name, data))


class AsyncSwitches(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    async def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.seen.append((name, data))


async def test_a_refusal_is_an_answer_and_no_call_by_every_route(wary: SSDEngine) -> None:
    model = ChatSSD(engine=wary, max_tokens=60, on_risk="refuse", refusal_text="No.").bind_tools([weather])
    whole = model.invoke("Hello")
    streamed: Any = None
    for chunk in model.stream("Hello"):
        streamed = chunk if streamed is None else streamed + chunk
    async_streamed: Any = None
    async for chunk in model.astream("Hello"):
        async_streamed = chunk if async_streamed is None else async_streamed + chunk
    assert whole.text == (await model.ainvoke("Hello")).text == "No."
    assert streamed.text == async_streamed.text
    assert streamed.text.endswith("No.")
    for message in (whole, streamed, async_streamed):
        assert message.response_metadata["finish_reason"] == "refused"
        assert message.tool_calls == message.invalid_tool_calls == []


async def test_raise_reaches_the_caller_by_every_route(wary: SSDEngine) -> None:
    model = ChatSSD(engine=wary, max_tokens=60, on_risk="raise")
    with pytest.raises(JailbreakRiskError):
        model.invoke("Hello")
    with pytest.raises(JailbreakRiskError):
        await model.ainvoke("Hello")
    with pytest.raises(JailbreakRiskError) as streamed:
        list(model.stream("Hello"))
    assert streamed.value.trace.risk == "elevated"


def test_structured_output_that_is_refused_is_an_error(wary: SSDEngine) -> None:
    class Long(BaseModel):
        words: list[str]

    model = ChatSSD(engine=wary, max_tokens=200, on_risk="refuse", temperature=1.0, seed=1)
    with pytest.raises(OutputParserException, match="refused"):
        model.with_structured_output(Long).invoke("Hello")


async def test_callbacks_get_one_event_a_scheme_switch(wary: SSDEngine) -> None:
    model = ChatSSD(engine=wary, max_tokens=40)
    answer = model.invoke("Hello")
    expected = answer.response_metadata["ssd"]["switches"]
    assert expected > 0
    sync, concurrent = Switches(), AsyncSwitches()
    model.invoke("Hello", config={"callbacks": [sync]})
    assert len(list(model.stream("Hello", config={"callbacks": [sync]}))) > 1
    await model.ainvoke("Hello", config={"callbacks": [concurrent]})
    events = [event async for event in model.astream_events("Hello", version="v2")]
    custom = [event for event in events if event["event"] == "on_custom_event"]
    assert len(sync.seen) == 2 * expected
    assert len(concurrent.seen) == len(custom) == expected
    name, data = sync.seen[0]
    assert name == "ssd_scheme_switch"
    assert data["ratio"] < data["threshold"]
    assert (data["scheme"], data["next_scheme"]) == ("intersection", "union")
    assert custom[0]["data"] == data
    assert custom[0]["run_id"] == events[0]["run_id"]


async def test_callbacks_get_one_event_an_alarm(tiny_engine: SSDEngine) -> None:
    model = ChatSSD(engine=tiny_engine, max_tokens=40, config=SSDConfig(signals={"kl": 0.3, "hold": 1}))
    answer = model.invoke("Hello")
    assert answer.response_metadata["ssd"]["alarms"] > 0
    sync, concurrent = Switches(), AsyncSwitches()
    model.invoke("Hello", config={"callbacks": [sync]})
    await model.ainvoke("Hello", config={"callbacks": [concurrent]})
    alarms = [data for name, data in sync.seen if name == "ssd_alarm"]
    assert len(alarms) == answer.response_metadata["ssd"]["alarms"]
    assert alarms[0].keys() == {"place", "signal", "score", "threshold"}
    assert alarms[0]["score"] >= alarms[0]["threshold"] == 0.3
    assert concurrent.seen == sync.seen


def test_a_function_decides_through_the_model_too(wary: SSDEngine) -> None:
    model = ChatSSD(engine=wary, max_tokens=40, on_risk=lambda trace: "refuse" if trace.union_share else None)
    answer = model.invoke("Hello")
    assert isinstance(answer, AIMessage)
    assert answer.response_metadata["finish_reason"] == "refused"
    assert "lambda" in model.dict()["on_risk"]
