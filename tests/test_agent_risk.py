"""LlamaIndex agents whose tools do not run at elevated risk, and what a stream shows of an answer that is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessageChunk
from llama_index.core.agent.workflow import AgentOutput, AgentWorkflow
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import HumanResponseEvent, InputRequiredEvent

from ssd_engine import SSDConfig, SSDEngine
from ssd_engine.config import SignalConfig
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM
from ssd_integrations.llama_index.agents import SSDFunctionAgent

CALM = SSDConfig(match_threshold=0.0)
"""Union never holds."""
ALARMED = SSDConfig(match_threshold=0.0, signals=SignalConfig(kl=0.0))
"""Every token that is chosen raises an alarm."""
REFUSAL = "I can't help with that."


@pytest.fixture
def ran() -> list[str]:
    return []


def agent_of(engine: SSDEngine, ran: list[str], config: SSDConfig, **options: Any) -> SSDFunctionAgent:
    def go() -> str:
        """Go."""
        ran.append("went")
        return "gone"

    llm = SSDLLM(engine=engine, max_tokens=80, config=config)
    tool = FunctionTool.from_defaults(go, return_direct=True)
    # The model has to call something: these models would not by themselves.
    return SSDFunctionAgent(
        tools=[tool], llm=llm, initial_tool_choice="any", allow_parallel_tool_calls=False, **options
    )


async def answer_of(agent: SSDFunctionAgent) -> AgentOutput:
    output = await agent.run("Go.")
    assert isinstance(output, AgentOutput)
    return output


async def test_calls_of_elevated_risk_do_not_run(tiny_engine: SSDEngine, ran: list[str]) -> None:
    agent = agent_of(tiny_engine, ran, ALARMED, note="Not this.")
    assert str(await answer_of(agent)) == "Not this."
    assert str(await AgentWorkflow(agents=[agent], root_agent=agent.name).run("Go.")) == "Not this."
    assert ran == []


async def test_calls_without_risk_run(tiny_engine: SSDEngine, ran: list[str]) -> None:
    assert str(await answer_of(agent_of(tiny_engine, ran, CALM))) == "gone"
    assert ran == ["went"]


async def test_a_judge_is_asked_at_elevated_risk_alone(tiny_engine: SSDEngine, ran: list[str]) -> None:
    asked: list[Sequence[ChatMessage]] = []

    def judge(messages: Sequence[ChatMessage]) -> bool:
        asked.append(messages)
        return False

    await answer_of(agent_of(tiny_engine, ran, ALARMED, on_risk=judge))
    assert [str(message.role.value) for message in asked[0]] == ["user", "assistant"]
    assert ran == []
    await answer_of(agent_of(tiny_engine, ran, CALM, on_risk=judge))
    assert (len(asked), ran) == (1, ["went"])


@pytest.mark.parametrize(("said", "runs"), [("yes", ["went"]), ("no", [])])
async def test_a_human_is_asked(tiny_engine: SSDEngine, ran: list[str], said: str, runs: list[str]) -> None:
    agent = agent_of(tiny_engine, ran, ALARMED, on_risk="ask", note="Not this.")
    handler = agent.run("Go.")
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            assert "Run go?" in event.prefix
            assert ran == []
            handler.ctx.send_event(HumanResponseEvent(response=said))
    assert str(await handler) == ("gone" if runs else "Not this.")
    assert ran == runs


@pytest.mark.parametrize("stream_mode", ["messages", ["messages", "updates"]])
def test_of_a_refused_answer_nothing_after_the_alarm_reaches_the_stream(wary: SSDEngine, stream_mode: Any) -> None:
    """Guards that run on whole answers see a stream too late; here its tokens stop coming."""
    whole = ChatSSD(engine=wary, max_tokens=60, decoding="ssd").invoke("Go.").content
    agent = create_agent(ChatSSD(engine=wary, max_tokens=60, on_risk="refuse", refusal_text=REFUSAL), [])
    parts = list(agent.stream({"messages": "Go."}, stream_mode=stream_mode))
    chunks = [part[1][0] if isinstance(part[0], str) and part[0] == "messages" else part[0] for part in parts]
    streamed = "".join(chunk.text for chunk in chunks if isinstance(chunk, AIMessageChunk))
    before, _, after = streamed.partition(REFUSAL)
    assert streamed.endswith(REFUSAL)
    assert after == ""
    assert isinstance(whole, str)
    assert whole.startswith(before.removesuffix("\n\n"))
    assert len(before) < len(whole) / 2


async def test_an_agents_stream_in_llama_index_stops_too(wary: SSDEngine) -> None:
    agent = SSDFunctionAgent(llm=SSDLLM(engine=wary, max_tokens=60, on_risk="refuse", refusal_text=REFUSAL))
    whole = SSDLLM(engine=wary, max_tokens=60).chat([ChatMessage("Go.")]).message.content or ""
    handler = agent.run("Go.")
    streamed = "".join([event.delta async for event in handler.stream_events() if hasattr(event, "delta")])
    before = streamed.removesuffix(REFUSAL)
    assert before != streamed
    assert whole.startswith(before.removesuffix("\n\n"))
    assert len(before) < len(whole) / 2
