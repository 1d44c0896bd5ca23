"""Agents with the middleware of the LangChain integration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.types import Command
from pydantic import Field

from ssd_engine import SSDConfig, SSDEngine
from ssd_engine.config import SignalConfig
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.langchain.middleware import RetryCutCalls, SSDRiskMiddleware

RUN: list[str] = []
CALM = SSDConfig(match_threshold=0.0)
"""Union never holds."""
ALARMED = SSDConfig(match_threshold=0.0, signals=SignalConfig(kl=0.0))
"""Every token that is chosen raises an alarm."""


def write(text: Annotated[str, Field(min_length=500)]) -> str:
    """Write a text that is longer than answers may be."""
    return text


def go() -> str:
    """Go."""
    RUN.append("went")
    return "gone"


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    RUN.clear()


class MustCall(AgentMiddleware[Any, Any, Any]):
    """The model has to call something each time: these models would not by themselves."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(tool_choice="any"))


def agent_of(engine: SSDEngine, middleware: Any, config: SSDConfig, **options: Any) -> Any:
    model = ChatSSD(engine=engine, max_tokens=80, config=config)
    return create_agent(model, [go], middleware=[MustCall(), middleware], **options)


def test_calls_of_elevated_risk_do_not_run(tiny_engine: SSDEngine) -> None:
    out = agent_of(tiny_engine, SSDRiskMiddleware(note="Not this."), ALARMED).invoke({"messages": "Go."})["messages"]
    assert RUN == []
    assert out[-1].content == "Not this."
    assert not out[-1].tool_calls
    assert out[-1].response_metadata["ssd"]["risk"] == "elevated"


def test_calls_without_risk_run(tiny_engine: SSDEngine) -> None:
    agent = agent_of(tiny_engine, SSDRiskMiddleware(), CALM)
    with pytest.raises(GraphRecursionError):
        agent.invoke({"messages": "Go."}, {"recursion_limit": 8})
    assert RUN


def test_a_judge_is_asked_at_elevated_risk_alone(tiny_engine: SSDEngine) -> None:
    asked: list[Sequence[AnyMessage]] = []

    def judge(messages: Sequence[AnyMessage]) -> bool:
        asked.append(messages)
        return False

    agent_of(tiny_engine, SSDRiskMiddleware(judge), ALARMED).invoke({"messages": "Go."})
    assert [type(message) for message in asked[0]] == [HumanMessage, AIMessage]
    assert RUN == []
    asked.clear()
    agent = agent_of(tiny_engine, SSDRiskMiddleware(judge), CALM)
    with pytest.raises(GraphRecursionError):
        agent.invoke({"messages": "Go."}, {"recursion_limit": 8})
    assert asked == []


def test_a_human_is_asked(tiny_engine: SSDEngine) -> None:
    agent = agent_of(tiny_engine, SSDRiskMiddleware("ask"), ALARMED, checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "1"}, "recursion_limit": 8}
    interrupted = agent.invoke({"messages": "Go."}, thread)
    (asked,) = interrupted["__interrupt__"]
    assert asked.value["tool_calls"][0]["name"] == "go"
    assert RUN == []
    agent.invoke(Command(resume=True), thread)
    assert RUN == ["went"]


def test_a_call_that_was_cut_off_is_tried_again(tiny_engine: SSDEngine) -> None:
    model = ChatSSD(engine=tiny_engine, max_tokens=40)
    agent = create_agent(model, [write], middleware=[MustCall(), RetryCutCalls(max_retries=2)])
    messages = agent.invoke({"messages": "Write."})["messages"]
    assert [type(message) for message in messages] == [HumanMessage, *[AIMessage, ToolMessage] * 2, AIMessage]
    assert messages[2].content.startswith("The call could not be run: ")
    assert messages[2].content.endswith("with shorter arguments.")
    assert "was cut off" in messages[-1].content
