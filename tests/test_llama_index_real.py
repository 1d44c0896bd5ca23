"""The real pair inside LlamaIndex: queries, chat, memory, an agent."""

from __future__ import annotations

import pytest
from llama_index.core import Document, MockEmbedding, Settings, SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import (
    ChatMessage,
    MessageRole,
)
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from ssd_engine import SSDEngine
from ssd_integrations.llama_index import SSDLLM


def get_weather(city: str) -> str:
    """Current weather in a city."""
    return f"It is sunny in {city}."


def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return {"Lyon": 522_000, "Turin": 841_000}.get(city, 0)


WEATHER = FunctionTool.from_defaults(get_weather)
POPULATION = FunctionTool.from_defaults(population)


@pytest.fixture
def real_llm(real_engine: SSDEngine) -> SSDLLM:
    return SSDLLM(engine=real_engine, max_tokens=96)


FACTS = [
    "The lighthouse of Marrow Point was built in 1874 by the engineer Odile Ferrant.",
    "The harbour of Marrow Point is closed to large ships in winter.",
]


def test_real_pair_answers_by_every_route_alike(real_llm: SSDLLM) -> None:
    whole = real_llm.complete("What is the capital of France? One word.")
    assert "Paris" in whole.text
    assert whole.raw["finish_reason"] == "stop"
    streamed = list(real_llm.stream_chat([ChatMessage("What is the capital of France? One word.")]))[-1]
    assert streamed.message.content == whole.text


# Without the second sentence so small a model calls its tool again and again.
INSTRUCTIONS = (
    "You are a helpful assistant. Call a tool when you need one. "
    "Once you have its result, answer the user in one plain sentence."
)


def test_real_pair_calls_a_tool_and_reads_its_result(real_engine: SSDEngine) -> None:
    llm = SSDLLM(engine=real_engine, max_tokens=48, system_prompt=INSTRUCTIONS)
    question = ChatMessage("How many people live in Lyon?")
    response = llm.chat_with_tools([POPULATION], question)
    (selection,) = llm.get_tool_calls_from_response(response)
    assert (selection.tool_name, selection.tool_kwargs) == ("population", {"city": "Lyon"})
    assert response.raw["finish_reason"] == "tool_calls"

    result = ChatMessage(role="tool", content="522000", additional_kwargs={"tool_call_id": selection.tool_id})
    answer = llm.chat_with_tools([POPULATION], chat_history=[question, response.message, result])
    assert "522" in (answer.message.content or "")
    assert llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False) == []


async def test_real_pair_streams_a_tool_call(real_llm: SSDLLM) -> None:
    stream = await real_llm.astream_chat_with_tools([WEATHER], "What is the weather in Oslo now?")
    last = [part async for part in stream][-1]
    (selection,) = real_llm.get_tool_calls_from_response(last)
    assert (selection.tool_name, selection.tool_kwargs) == ("get_weather", {"city": "Oslo"})


async def test_real_pair_drives_an_agent(real_llm: SSDLLM) -> None:
    agent = FunctionAgent(tools=[POPULATION], llm=real_llm, system_prompt=INSTRUCTIONS)
    output = await agent.run("How many people live in Lyon?")
    assert [(call.tool_name, call.tool_kwargs) for call in output.tool_calls] == [("population", {"city": "Lyon"})]
    assert "522" in str(output)


async def test_real_pair_drives_a_react_agent(real_llm: SSDLLM) -> None:
    run = ReActAgent(tools=[POPULATION], llm=real_llm).run("How many people live in Lyon?", max_iterations=6)
    called = [event async for event in run.stream_events() if isinstance(event, ToolCallResult)]
    assert [(call.tool_name, call.tool_kwargs) for call in called] == [("population", {"city": "Lyon"})]
    assert "522" in str(await run)


async def test_real_pair_hands_over_between_agents(real_llm: SSDLLM) -> None:
    """The first agent is made to hand over; what the second makes of it is left to the models."""
    reception = FunctionAgent(
        name="Reception",
        description="Welcomes users.",
        system_prompt="Hand every question about a city over to CityExpert.",
        llm=real_llm,
        can_handoff_to=["CityExpert"],
        initial_tool_choice="handoff",
    )
    expert = FunctionAgent(
        name="CityExpert",
        description="Knows how many people live in a city.",
        system_prompt="You know cities. Call a tool when you need one. "
        "Once you have its result, answer the user in one plain sentence.",
        tools=[POPULATION],
        llm=real_llm,
        can_handoff_to=[],
    )
    workflow = AgentWorkflow(
        agents=[reception, expert],
        root_agent="Reception",
        # So small a model takes LlamaIndex's own words for a reason to refuse.
        handoff_prompt="Hand the user's question over to another agent, who can look the answer up. "
        "The reason says what the user wants to know. Agents: {agent_info}",
        handoff_output_prompt="{to_agent} takes over: {reason}",
    )
    run = workflow.run("How many people live in Turin?", max_iterations=6)
    called = [event async for event in run.stream_events() if isinstance(event, ToolCallResult)]
    output = await run
    assert called[0].tool_name == "handoff"
    assert called[0].tool_kwargs["to_agent"] == "CityExpert"
    assert output.current_agent_name == "CityExpert"
    assert str(output)


class City(BaseModel):
    """A city and where it is."""

    name: str
    country: str


async def test_real_pair_predicts_objects(real_llm: SSDLLM) -> None:
    prompt = PromptTemplate("Where is {landmark}?")
    city = real_llm.structured_predict(City, prompt, landmark="the Eiffel Tower")
    assert (city.name, city.country) == ("Paris", "France")
    *_, streamed = real_llm.stream_structured_predict(City, prompt, landmark="the Eiffel Tower")
    assert streamed == city
    assert real_llm.as_structured_llm(City).complete("Where is the Eiffel Tower?").raw == city


def test_real_pair_answers_a_query_engine_as_settings_llm(real_llm: SSDLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.llm = real_llm
    Settings.embed_model = MockEmbedding(embed_dim=8)
    documents = [Document(text=fact) for fact in FACTS]
    for index in (SummaryIndex.from_documents(documents), VectorStoreIndex.from_documents(documents)):
        answer = index.as_query_engine().query("Who built the lighthouse of Marrow Point?")
        assert "Ferrant" in str(answer)


def test_real_pair_streams_a_query_engines_answer(real_llm: SSDLLM) -> None:
    index = SummaryIndex.from_documents([Document(text=fact) for fact in FACTS])
    answer = index.as_query_engine(llm=real_llm, streaming=True).query("In which year was the lighthouse built?")
    assert "1874" in "".join(answer.response_gen)


def test_real_pair_remembers_in_a_chat_engine(real_llm: SSDLLM) -> None:
    memory = ChatMemoryBuffer.from_defaults(llm=real_llm)
    chat = SimpleChatEngine.from_defaults(llm=real_llm, memory=memory)
    chat.chat("My name is Odile.")
    assert "Odile" in str(chat.chat("What is my name?"))
    streamed = chat.stream_chat("Spell my name in capital letters.")
    assert "ODILE" in "".join(streamed.response_gen).replace("-", "").replace(" ", "")
    assert [message.role for message in memory.get()] == [MessageRole.USER, MessageRole.ASSISTANT] * 3
