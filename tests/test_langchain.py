"""ChatSSD as LangChain's users see it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any
from uuid import UUID

import pytest
from conftest import wait_for
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableWithMessageHistory
from langchain_core.tools import tool

from ssd_engine import SSDConfig, SSDEngine
from ssd_engine.answers.result import Piece, ToolCall
from ssd_engine.answers.tool_calls import ToolCallParser
from ssd_engine.answers.tool_formats import ToolFormat
from ssd_engine.errors import InvalidRequestError, RequestTimeoutError
from ssd_engine.prompts.conversation import Conversation
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.langchain.messages import to_engine_messages, to_message_chunk


@tool
def population(city: str) -> int:
    """Number of inhabitants of a city."""
    return {"Lyon": 522_000}.get(city, 0)


@tool
def weather(city: str) -> str:
    """Today's weather in a city."""
    return f"sunny in {city}"


@pytest.fixture
def model(tiny_engine: SSDEngine) -> ChatSSD:
    return ChatSSD(engine=tiny_engine, max_tokens=24)


# Small random models: what does not depend on the sense of an answer


async def test_the_four_ways_to_ask_agree(model: ChatSSD) -> None:
    answer = model.invoke("Hello")
    assert isinstance(answer, AIMessage)
    assert answer.content
    assert (await model.ainvoke("Hello")).content == answer.content
    assert "".join(chunk.text for chunk in model.stream("Hello")) == answer.content
    assert "".join([chunk.text async for chunk in model.astream("Hello")]) == answer.content


async def test_batches_keep_their_order(model: ChatSSD) -> None:
    prompts = [f"Question {i}" for i in range(4)]
    alone = [model.invoke(prompt).content for prompt in prompts]
    assert [answer.content for answer in model.batch(prompts)] == alone
    assert [answer.content for answer in await model.abatch(prompts)] == alone


def test_a_batch_decodes_together(model: ChatSSD, tiny_engine: SSDEngine) -> None:
    """All 8 hold a place at once, though LangChain itself would ask for fewer on a small machine."""
    long = ChatSSD(engine=tiny_engine, max_tokens=1000)
    done: list[AIMessage] = []
    thread = threading.Thread(target=lambda: done.extend(long.batch([f"Question {i}" for i in range(8)])))
    thread.start()
    wait_for(lambda: tiny_engine.num_running == 8)
    thread.join()
    assert len(done) == 8


def test_a_bad_input_in_a_batch_fails_alone(model: ChatSSD) -> None:
    image = HumanMessage([{"type": "image", "url": "x"}])
    good, bad = model.batch([[HumanMessage("Hi")], [image]], return_exceptions=True)
    assert isinstance(good, AIMessage)
    assert isinstance(bad, InvalidRequestError)


def test_messages_carry_usage_metadata_and_trace(model: ChatSSD) -> None:
    answer = model.invoke("Hello there, " * 20)
    usage = answer.usage_metadata
    assert usage is not None
    assert usage["output_tokens"] == 24
    assert usage["total_tokens"] == usage["input_tokens"] + 24
    assert usage["input_token_details"]["cache_read"] == 0
    assert model.invoke("Hello there, " * 20).usage_metadata["input_token_details"]["cache_read"] > 0
    metadata = answer.response_metadata
    assert metadata["model_name"] == "tiny"
    assert metadata["finish_reason"] == "length"
    assert len(metadata["ssd"]["match_ratios"]) == 24 // 7
    assert metadata["ssd"]["risk"] in ("none", "elevated")


def test_a_streamed_answer_adds_up_to_the_invoked_one(model: ChatSSD) -> None:
    invoked = model.invoke("Hello")
    chunks = list(model.stream("Hello"))
    assert len(chunks) > 3
    total: AIMessageChunk | None = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert total is not None
    assert total.usage_metadata["output_tokens"] == invoked.usage_metadata["output_tokens"]
    assert total.response_metadata == invoked.response_metadata


class Recorder(BaseCallbackHandler):
    """Keeps what the callbacks are told."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.chunks: list[Any] = []
        self.metadata: dict[str, Any] = {}

    def on_chat_model_start(self, *args: Any, metadata: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.metadata = metadata or {}

    def on_llm_new_token(self, token: str, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        self.tokens.append(token)
        self.chunks.append(chunk)


def test_callbacks_get_token_and_chunk_and_langsmith_parameters(model: ChatSSD) -> None:
    recorder = Recorder()
    text = "".join(chunk.text for chunk in model.stream("Hello", config={"callbacks": [recorder]}))
    assert "".join(recorder.tokens) == text
    assert "".join(chunk.message.text for chunk in recorder.chunks) == text
    assert recorder.metadata["ls_provider"] == "ssd"
    assert recorder.metadata["ls_model_name"] == "tiny"
    assert recorder.metadata["ls_max_tokens"] == 24


def test_settings_of_the_model_and_of_a_call(model: ChatSSD, tiny_engine: SSDEngine) -> None:
    free = model.invoke("Hello").content
    stop = free[len(free) // 2 :][:3]
    expected = free[: free.index(stop)]
    assert model.invoke("Hello", stop=[stop]).content == expected
    assert ChatSSD(engine=tiny_engine, max_tokens=24, stop=stop).invoke("Hello").content == expected
    assert model.invoke("Hello", max_tokens=5).usage_metadata["output_tokens"] == 5
    assert model.bind(max_tokens=6).invoke("Hello").usage_metadata["output_tokens"] == 6
    warm = ChatSSD(engine=tiny_engine, max_tokens=24, temperature=1.0, seed=4)
    assert warm.invoke("Hello").content == warm.invoke("Hello").content != warm.invoke("Hello", seed=5).content
    logprobs = model.invoke("Hello", logprobs=True, top_logprobs=2).response_metadata["logprobs"]["content"]
    assert len(logprobs) == 24
    assert len(logprobs[0]["top_logprobs"]) == 2
    baseline = ChatSSD(engine=tiny_engine, max_tokens=8, decoding="target").invoke("Hello")
    assert baseline.response_metadata["ssd"]["decoding"] == "target"


def test_a_models_own_config_is_used_on_a_shared_engine(tiny_engine: SSDEngine) -> None:
    fine = ChatSSD(engine=tiny_engine, max_tokens=24, config=SSDConfig(bin_size=2)).invoke("Hello")
    assert len(fine.response_metadata["ssd"]["match_ratios"]) == 12


def test_a_stream_that_is_left_stops_decoding(model: ChatSSD, tiny_engine: SSDEngine) -> None:
    for _ in model.stream("Hello", max_tokens=1500):
        break
    wait_for(lambda: tiny_engine.is_idle)


async def test_a_cancelled_task_stops_decoding(model: ChatSSD, tiny_engine: SSDEngine) -> None:
    task = asyncio.create_task(model.ainvoke("Hello", max_tokens=1500))
    await asyncio.to_thread(wait_for, lambda: not tiny_engine.is_idle)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_for, lambda: tiny_engine.is_idle)


def test_tokens_are_counted_with_the_real_tokenizer(model: ChatSSD, tiny_engine: SSDEngine) -> None:
    assert model.get_token_ids("fox") == tiny_engine.tokenizer("fox").input_ids
    counted = model.get_num_tokens_from_messages([HumanMessage("Hello")])
    assert counted == model.invoke("Hello").usage_metadata["input_tokens"]
    assert model.get_num_tokens_from_messages([HumanMessage("Hello")], tools=[population]) > counted


def test_every_message_class_finds_its_role() -> None:
    call = {"name": "population", "args": {"city": "Lyon"}, "id": "1", "type": "tool_call"}
    messages = [
        SystemMessage("s"),
        HumanMessage([{"type": "text", "text": "h"}]),
        AIMessage([{"type": "text", "text": "a"}, {"type": "tool_use", "id": "1"}], tool_calls=[call]),
        ToolMessage("522000", tool_call_id="1", name="population"),
        ChatMessage("c", role="user"),
    ]
    converted = to_engine_messages(messages)
    assert [message["role"] for message in converted] == ["system", "user", "assistant", "tool", "user"]
    assert Conversation.parse(converted).messages[2]["content"] == "a"
    assert converted[2]["tool_calls"][0]["function"] == {"name": "population", "arguments": {"city": "Lyon"}}
    assert converted[3]["name"] == "population"
    with pytest.raises(InvalidRequestError, match="RemoveMessage"):
        to_engine_messages([RemoveMessage(id="1")])


def test_tool_calls_stream_as_chunks_that_add_up() -> None:
    pieces = [
        Piece(text="Well. "),
        Piece(tool_calls=(ToolCall("a", "population", {"city": "Lyon"}), ToolCall("b", "weather", {"city": "Nice"}))),
    ]
    first, second = (to_message_chunk(piece, "tiny", 0) for piece in pieces)
    total = first + second
    assert total.content == "Well. "
    assert [(c["id"], c["name"], c["args"]) for c in total.tool_calls] == [
        ("a", "population", {"city": "Lyon"}),
        ("b", "weather", {"city": "Nice"}),
    ]


def test_a_broken_call_is_invalid_streamed_or_not() -> None:
    parser = ToolCallParser(ToolFormat.HERMES, ["population"])
    parser.feed('{"name": "population", "arguments": {"city": "Lyo')
    [broken] = parser.finish().invalid_tool_calls
    chunk = to_message_chunk(Piece(invalid_tool_calls=(broken,)), "tiny", 0)
    for message in (chunk, chunk + AIMessageChunk("", chunk_position="last")):
        assert message.tool_calls == []
        [call] = message.invalid_tool_calls
        assert call["name"] == "population"
        assert call["args"].startswith("the answer ended within this call")
        assert broken.text in call["args"]


def test_tool_choice_decides_what_is_offered(model: ChatSSD) -> None:
    def prompt_tokens(tool_choice: Any) -> int:
        bound = model.bind_tools([population, weather], tool_choice=tool_choice)
        return bound.invoke("Hello", max_tokens=1).usage_metadata["input_tokens"]

    both = prompt_tokens(None)
    assert prompt_tokens("auto") == prompt_tokens("any") == both
    assert prompt_tokens("none") < prompt_tokens("weather") < both
    with pytest.raises(InvalidRequestError, match="'rain' is none of the tools on offer: population, weather"):
        model.bind_tools([population, weather], tool_choice="rain")


def test_mistakes_are_told_when_they_are_made(model: ChatSSD, tiny_engine: SSDEngine) -> None:
    with pytest.raises(ValueError, match="temperature=-1"):
        ChatSSD(engine=tiny_engine, temperature=-1)
    with pytest.raises(ValueError, match="leave out model"):
        ChatSSD(engine=tiny_engine, model="a", draft="b")
    with pytest.raises(InvalidRequestError, match="tempreature"):
        model.invoke("Hello", tempreature=1)
    with pytest.raises(InvalidRequestError, match="'image_url'"):
        model.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])
    with pytest.raises(InvalidRequestError, match="empty"):
        model.invoke([])
    with pytest.raises(InvalidRequestError, match="wizard"):
        model.invoke([ChatMessage("x", role="wizard")])
    with pytest.raises(InvalidRequestError, match="draft=None"):
        ChatSSD(model="org/large").invoke("Hello")
    with pytest.raises(RequestTimeoutError):
        model.invoke("Hello", max_tokens=1500, timeout=0.01)
    assert model.invoke("Hello").content


def test_the_langchain_face_needs_no_llama_index() -> None:
    code = (
        "import sys; sys.modules['llama_index'] = None; import ssd_integrations.langchain; "
        "assert not any(name.startswith('transformers.models.') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_langchain_names_the_extra() -> None:
    code = "import sys; sys.modules['langchain_core'] = None; import ssd_integrations.langchain"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "ssd-integrations[langchain]"' in done.stderr


# The real pair


INSTRUCTIONS = (
    "You are a helpful assistant. Call a tool when you need one. "
    "Once you have its result, answer the user in one plain sentence."
)


@pytest.fixture(scope="module")
def real_model(real_engine: SSDEngine) -> ChatSSD:
    return ChatSSD(engine=real_engine, max_tokens=48)


async def test_the_real_pair_answers_in_every_way(real_model: ChatSSD) -> None:
    question = "What is the capital of France? Answer in one word."
    answer = real_model.invoke(question)
    assert "Paris" in answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["ssd"]["match_rate"] > 0
    assert (await real_model.ainvoke(question)).content == answer.content
    assert "".join([chunk.text async for chunk in real_model.astream(question)]) == answer.content


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_call_is_made_executed_and_answered(streamed: bool, real_model: ChatSSD) -> None:
    bound = real_model.bind_tools([population, weather])
    messages: list[Any] = [SystemMessage(INSTRUCTIONS), HumanMessage("How many people live in Lyon?")]
    if streamed:
        call_message: Any = None
        for chunk in bound.stream(messages):
            call_message = chunk if call_message is None else call_message + chunk
    else:
        call_message = bound.invoke(messages)
    assert [(call["name"], call["args"]) for call in call_message.tool_calls] == [("population", {"city": "Lyon"})]
    assert call_message.response_metadata["finish_reason"] == "tool_calls"
    messages += [call_message, population.invoke(call_message.tool_calls[0])]
    answer = bound.invoke(messages)
    assert "522" in answer.content
    assert answer.tool_calls == []


def test_message_history_works_around_it_and_reuses_the_prefix(real_model: ChatSSD) -> None:
    history = InMemoryChatMessageHistory()
    chat = RunnableWithMessageHistory(real_model, lambda: history)
    chat.invoke("My name is Ada. I live in Turin. Remember both and answer with OK only.")
    answer = chat.invoke("What is my name? One word.")
    assert "Ada" in answer.content
    assert answer.usage_metadata["input_token_details"]["cache_read"] >= 32
    assert len(history.messages) == 4


async def test_an_agent_runs_a_tool_through_the_real_pair(real_engine: SSDEngine) -> None:
    from langchain.agents import create_agent
    from langgraph.checkpoint.memory import InMemorySaver

    model = ChatSSD(engine=real_engine, max_tokens=64)
    agent = create_agent(model, [population], system_prompt=INSTRUCTIONS, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    question = {"messages": [HumanMessage("How many people live in Lyon?")]}
    state = await agent.ainvoke(question, config)
    kinds = [type(message) for message in state["messages"]]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert "522" in state["messages"][-1].content
