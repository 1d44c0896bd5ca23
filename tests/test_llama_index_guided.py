"""SSDLLM under grammars and under risk: structured prediction, refusals, scheme switch events."""

from __future__ import annotations

from typing import Any, Literal

import llama_index.core.instrumentation as instrument
import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from ssd_engine import SSDConfig, SSDEngine
from ssd_engine.errors import JailbreakRiskError
from ssd_integrations.llama_index import SSDLLM
from ssd_integrations.llama_index.events import AlarmEvent, SchemeSwitchEvent


class Mood(BaseModel):
    """How someone feels."""

    feeling: Literal["calm", "cross"]
    strength: Literal[1, 2, 3]


PROMPT = PromptTemplate("How is {who}?")


@pytest.fixture
def llm(tiny_engine: SSDEngine) -> SSDLLM:
    return SSDLLM(engine=tiny_engine, max_tokens=300)


async def test_structured_prediction_gives_one_object_by_every_route(llm: SSDLLM) -> None:
    mood = llm.structured_predict(Mood, PROMPT, who="Ann")
    assert isinstance(mood, Mood)
    assert await llm.astructured_predict(Mood, PROMPT, who="Ann") == mood
    assert list(llm.stream_structured_predict(Mood, PROMPT, who="Ann")) == [mood]
    assert [each async for each in await llm.astream_structured_predict(Mood, PROMPT, who="Ann")] == [mood]


async def test_a_structured_llm_answers_in_objects(llm: SSDLLM) -> None:
    structured = llm.as_structured_llm(Mood)
    mood = structured.complete("How is Ann?").raw
    assert isinstance(mood, Mood)
    assert structured.chat([ChatMessage("How is Ann?")]).raw == mood
    assert [part.raw for part in structured.stream_chat([ChatMessage("How is Ann?")])] == [mood]
    assert (await structured.achat([ChatMessage("How is Ann?")])).raw == mood


async def test_an_object_that_max_tokens_cuts_off_is_an_error(llm: SSDLLM) -> None:
    short: dict[str, Any] = {"max_tokens": 12}
    with pytest.raises(ValueError, match="tool call"):
        llm.structured_predict(Mood, PROMPT, llm_kwargs=short, who="Ann")
    with pytest.raises(ValueError, match="'length'"):
        list(llm.stream_structured_predict(Mood, PROMPT, llm_kwargs=short, who="Ann"))
    stream = await llm.astream_structured_predict(Mood, PROMPT, llm_kwargs=short, who="Ann")
    with pytest.raises(ValueError, match="'length'"):
        await anext(stream)


# Risk


def get_weather(city: str) -> str:
    """Current weather in a city."""
    return f"sunny in {city}"


async def test_a_refusal_is_an_answer_and_no_call_by_every_route(wary: SSDEngine) -> None:
    llm = SSDLLM(engine=wary, max_tokens=60, on_risk="refuse", refusal_text="No.")
    tools = [FunctionTool.from_defaults(get_weather)]
    whole = llm.chat_with_tools(tools, "Hello")
    concurrent = await llm.achat_with_tools(tools, "Hello")
    *_, streamed = llm.stream_chat_with_tools(tools, "Hello")
    async for part in await llm.astream_chat_with_tools(tools, "Hello"):
        last = part
    assert whole.message.content == concurrent.message.content == llm.complete("Hello").text == "No."
    assert (streamed.message.content or "").endswith("No.")
    for response in (whole, concurrent, streamed, last):
        assert response.raw["finish_reason"] == "refused"
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []


async def test_raise_reaches_the_caller_by_every_route(wary: SSDEngine) -> None:
    llm = SSDLLM(engine=wary, max_tokens=60, on_risk="raise", risk_bins=1)
    with pytest.raises(JailbreakRiskError):
        llm.complete("Hello")
    with pytest.raises(JailbreakRiskError):
        await llm.achat([ChatMessage("Hello")])
    with pytest.raises(JailbreakRiskError) as streamed:
        list(llm.stream_complete("Hello"))
    assert streamed.value.trace.risk == "elevated"


async def test_instrumentation_gets_one_event_a_scheme_switch(wary: SSDEngine) -> None:
    seen: list[SchemeSwitchEvent] = []

    class Recorder(BaseEventHandler):
        def handle(self, event: BaseEvent, **kwargs: Any) -> None:
            if isinstance(event, SchemeSwitchEvent):
                seen.append(event)

    llm = SSDLLM(engine=wary, max_tokens=40)
    dispatcher = instrument.get_dispatcher()
    recorder = Recorder()
    dispatcher.add_event_handler(recorder)
    try:
        expected = llm.complete("Hello").raw["ssd"]["switches"]
        assert list(llm.stream_complete("Hello"))
        await llm.acomplete("Hello")
        async for _ in await llm.astream_complete("Hello"):
            pass
    finally:
        dispatcher.event_handlers.remove(recorder)
    assert len(seen) == 4 * expected > 0
    assert seen[0].ratio < seen[0].threshold
    assert (seen[0].scheme, seen[0].next_scheme) == ("intersection", "union")


def test_instrumentation_gets_one_event_an_alarm(tiny_engine: SSDEngine) -> None:
    seen: list[AlarmEvent] = []

    class Recorder(BaseEventHandler):
        def handle(self, event: BaseEvent, **kwargs: Any) -> None:
            if isinstance(event, AlarmEvent):
                seen.append(event)

    llm = SSDLLM(engine=tiny_engine, max_tokens=40, config=SSDConfig(signals={"kl": 0.3, "hold": 1}))
    dispatcher = instrument.get_dispatcher()
    recorder = Recorder()
    dispatcher.add_event_handler(recorder)
    try:
        expected = llm.complete("Hello").raw["ssd"]["alarms"]
    finally:
        dispatcher.event_handlers.remove(recorder)
    assert len(seen) == expected > 0
    assert seen[0].signal == "kl"
    assert seen[0].score >= seen[0].threshold == 0.3
