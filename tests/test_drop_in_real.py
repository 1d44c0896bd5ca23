"""Public reports, on the default pair: agents that ask before they answer, and graphs that have something in them."""

from __future__ import annotations

from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, BaseMessage
from llama_index.core.indices.property_graph import SchemaLLMPathExtractor
from llama_index.core.schema import TextNode
from pydantic import BaseModel

from ssd_engine import SSDEngine
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM

QUESTIONS = ("How many people live in Lyon?", "How many people live in Turin?")
LIMIT = 12


class Report(BaseModel):
    """A city and how many people live there."""

    city: str
    inhabitants: int


def population(city: str) -> int:
    """Number of inhabitants of a city. Ask it; do not guess."""
    return {"Lyon": 522_617, "Turin": 841_903}[city]


def calls_of(messages: list[BaseMessage]) -> list[str]:
    return [call["name"] for message in messages if isinstance(message, AIMessage) for call in message.tool_calls]


def expected(question: str) -> Report:
    city = "Lyon" if "Lyon" in question else "Turin"
    return Report(city=city, inhabitants=population(city))


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_tool_is_asked_before_the_answers_own_tool(real_engine: SSDEngine, question: str) -> None:
    agent = create_agent(ChatSSD(engine=real_engine), [population], response_format=ToolStrategy(Report))
    state = agent.invoke({"messages": question}, {"recursion_limit": LIMIT})
    assert calls_of(state["messages"]) == ["population", "Report"]
    assert state["structured_response"] == expected(question)


class City(BaseModel):
    name: str
    inhabitants: int


@pytest.mark.parametrize("schema", [Report, City])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_tool_is_asked_before_the_object_is_given(
    real_engine: SSDEngine, question: str, schema: type[BaseModel]
) -> None:
    agent = create_agent(ChatSSD(engine=real_engine), [population], response_format=schema)
    state = agent.invoke({"messages": question}, {"recursion_limit": LIMIT})
    assert calls_of(state["messages"]) == ["population"]
    assert state["structured_response"].inhabitants == expected(question).inhabitants


def test_a_short_text_becomes_a_graph(real_engine: SSDEngine) -> None:
    extractor = SchemaLLMPathExtractor(
        llm=SSDLLM(engine=real_engine),
        possible_entities=Literal["PERSON", "PLACE"],
        possible_relations=Literal["LIVES_IN", "BORN_IN"],
        strict=False,
        num_workers=1,
        max_triplets_per_chunk=3,
    )
    (node,) = extractor([TextNode(text="Ada was born in Turin. She lives in Lyon.")])
    found = {(relation.source_id, relation.label, relation.target_id) for relation in node.metadata["relations"]}
    assert found == {("Ada", "BORN_IN", "Turin"), ("Ada", "LIVES_IN", "Lyon")}
