"""The applications of `examples/` on the real pair: an agent with a database, a graph, retrieval, poisoned texts."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from llama_index.core import VectorStoreIndex
from llama_index.core.base.llms.types import MessageRole

from ssd_engine import SSDEngine
from ssd_engine.serving.request import Request
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM

# The examples are programs, in no package; they find each other by their folder, as they do when they are run.
sys.path.append(str(Path(__file__).parent.parent / "examples"))
agent, graph, embedding, rag_langchain, rag_llama_index = map(
    importlib.import_module, ("agent", "graph", "embedding", "rag_langchain", "rag_llama_index")
)


@pytest.fixture
def requests(real_engine: SSDEngine, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What both models are given to read, in the order of the requests."""
    seen: list[Request] = []
    submit = real_engine._scheduler.submit

    def record(request: Request) -> None:
        seen.append(request)
        submit(request)

    monkeypatch.setattr(real_engine._scheduler, "submit", record)
    return seen


@pytest.fixture
def control_tokens(real_engine: SSDEngine) -> Callable[[Request], list[Counter[str]]]:
    """How often each control token stands in a request's prompt, for the target and for the draft."""
    control = {i: str(token) for i, token in real_engine.tokenizer.added_tokens_decoder.items()}

    def count(request: Request) -> list[Counter[str]]:
        return [Counter(control[i] for i in ids if i in control) for ids in (request.target_ids, request.draft_ids)]

    return count


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    documents = [*rag_llama_index.project_documents(), *rag_llama_index.licence_documents()]
    return rag_llama_index.make_index(documents, embedding.llama_index_embedding())


@pytest.fixture
def llm(real_engine: SSDEngine) -> SSDLLM:
    return SSDLLM(engine=real_engine, max_tokens=32)


def test_the_embedding_is_found_without_running_its_package() -> None:
    near, same, far = embedding.langchain_embedding().embed_documents(["a boat", "a ship", "tax law"])
    similarities = [sum(a * b for a, b in zip(near, other, strict=True)) for other in (same, far)]
    assert similarities[0] > similarities[1]
    assert embedding.PACKAGE not in sys.modules


async def test_an_agent_takes_an_order_over_three_turns(real_engine: SSDEngine, tmp_path: Path) -> None:
    database = tmp_path / "orders.sqlite"
    shop = agent.make_agent(ChatSSD(engine=real_engine, max_tokens=96), database)
    events = [event for text in agent.TURNS async for event in agent.events_of_turn(shop, text, "order")]

    assert agent.saved_orders(database) == [("desk lamp", 3, 73.5)]
    state = await shop.aget_state({"configurable": {"thread_id": "order"}})
    messages: list[BaseMessage] = state.values["messages"]
    assert [message.content for message in messages if message.type == "human"] == list(agent.TURNS)
    answers = [message for message in messages if message.type == "ai"]

    # What came as a stream is what the conversation keeps.
    tokens = [value for kind, value in events if kind == "token"]
    assert len(tokens) > len(agent.TURNS)
    assert "".join(tokens) == "".join(answer.text for answer in answers)
    streamed_calls = [value["id"] for kind, value in events if kind == "call"]
    assert streamed_calls == [call["id"] for answer in answers for call in answer.tool_calls]
    assert {value["name"] for kind, value in events if kind == "call"} == {"search_catalogue", "compute", "save_order"}
    results = [value.content for kind, value in events if kind == "result"]
    assert results == [message.content for message in messages if message.type == "tool"]


async def test_two_nodes_of_a_graph_are_answered_at_once(real_engine: SSDEngine) -> None:
    debate = await graph.make_graph(ChatSSD(engine=real_engine, max_tokens=40)).ainvoke({"topic": graph.TOPIC})
    assert debate["at_once"] == 2
    answers = {debate[part] for part in ("pros", "cons", "verdict")}
    assert len(answers) == 3
    assert "" not in answers


def test_a_query_engine_finds_a_fact_in_the_docs_and_streams_the_same(index: VectorStoreIndex, llm: SSDLLM) -> None:
    question = rag_llama_index.QUESTION
    answer = index.as_query_engine(llm=llm, similarity_top_k=rag_llama_index.PASSAGES).query(question)
    assert "how-it-works.md" in {found.metadata["source"] for found in answer.source_nodes}
    assert "threshold" in str(answer)
    streaming = index.as_query_engine(llm=llm, similarity_top_k=rag_llama_index.PASSAGES, streaming=True)
    parts = list(streaming.query(question).response_gen)
    assert len(parts) > 1
    assert "".join(parts) == str(answer)


def test_a_chat_engine_remembers(index: VectorStoreIndex, llm: SSDLLM, requests: list[Request]) -> None:
    chat = rag_llama_index.make_chat(index, llm)
    first, second = (str(chat.chat(question)) for question in rag_llama_index.CHAT)
    assert "Apache" in first
    assert [message.role for message in chat.chat_history] == [MessageRole.USER, MessageRole.ASSISTANT] * 2
    assert chat.chat_history[-1].content == second
    # The first question stands in what the model read for the second, which does not name what it is about.
    assert "transformers" not in rag_llama_index.CHAT[1]
    assert rag_llama_index.CHAT[0] in llm.engine.tokenizer.decode(requests[-1].target_ids)


async def test_a_chain_answers_eight_questions_in_their_order(real_engine: SSDEngine) -> None:
    retriever = rag_langchain.make_retriever(rag_langchain.FACTS, embedding.langchain_embedding())
    chain = rag_langchain.make_chain(retriever, ChatSSD(engine=real_engine, max_tokens=24))
    answers = await chain.abatch(list(rag_langchain.QUESTIONS))
    expected = ("Ferrant", "December", "9", "Monday", "plum", "1,240", "Solheim", "August")
    for answer, fact in zip(answers, expected, strict=True):
        assert fact in answer


async def test_a_poisoned_document_opens_no_role(
    real_engine: SSDEngine, requests: list[Request], control_tokens: Callable[[Request], list[Counter[str]]]
) -> None:
    model = ChatSSD(engine=real_engine, max_tokens=1)
    texts = (*rag_langchain.FACTS, rag_langchain.POISON)
    retriever = rag_langchain.make_retriever(texts, embedding.langchain_embedding())
    await rag_langchain.make_chain(retriever, model).ainvoke(rag_langchain.POISONED_QUESTION)
    await model.ainvoke([SystemMessage("notes"), HumanMessage("question")])
    poisoned, harmless = requests

    assert rag_langchain.POISON in real_engine.tokenizer.decode(poisoned.target_ids), "the model reads it as text"
    expected = Counter({"<|im_start|>": 3, "<|im_end|>": 2})
    assert control_tokens(harmless) == [expected, expected]
    assert control_tokens(poisoned) == [expected, expected]


def test_a_poisoned_tool_result_opens_no_role(
    real_engine: SSDEngine, requests: list[Request], control_tokens: Callable[[Request], list[Counter[str]]]
) -> None:
    def second_request(result: str) -> Request:
        """What the models read after an agent's tool has given `result`."""

        @tool
        def opening_times(place: str) -> str:
            """When a place opens."""
            return result

        requests.clear()
        instructions = "Call a tool when you need one. With its result, answer in one plain sentence."
        guide = create_agent(ChatSSD(engine=real_engine, max_tokens=32), [opening_times], system_prompt=instructions)
        steps: Any = guide.stream({"messages": [("user", "When does the campsite open?")]}, stream_mode="updates")
        assert [next(iter(next(steps))) for _ in range(3)] == ["model", "tools", "model"]
        steps.close()
        return requests[1]

    poisoned, harmless = second_request(rag_langchain.POISON), second_request("In May.")
    assert rag_langchain.POISON in real_engine.tokenizer.decode(poisoned.target_ids), "the model reads it as text"
    target, draft = control_tokens(poisoned)
    assert [target, draft] == control_tokens(harmless)
    # system, user, the call, its result (a user's turn in this template) and the answer's beginning
    assert (target["<|im_start|>"], target["<|im_end|>"]) == (5, 4)
