"""What people build on other models runs unchanged: reported faults of such integrations, each as a test."""

from __future__ import annotations

import copy
import pickle
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

import pytest
from drop_in_cases import llm, model  # noqa: F401 (fixtures)
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain.agents.structured_output import StructuredOutputValidationError
from langchain_core import exceptions as langchain_errors
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, trim_messages
from llama_index.core import Document, MockEmbedding, Settings, SummaryIndex
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from ssd_engine import SSDEngine
from ssd_engine.errors import ContextLengthError, InvalidRequestError, RequestTimeoutError
from ssd_engine.grammars.json_schema import warn_of
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM


class Node(BaseModel):
    """A folder and what is in it."""

    name: str
    children: list[Node] = []


class Colour(Enum):
    """Of a lamp."""

    RED = "red"
    BLUE = "blue"


class Review(BaseModel):
    """A review."""

    tags: set[str]
    scores: dict[Colour, int]
    place: Path


Item = TypeVar("Item")


class City(BaseModel):
    """A city."""

    name: str


class Found(BaseModel, Generic[Item]):
    """An answer."""

    item: Item


# -- LangChain's conventions --


def test_transformers_name_of_the_limit_holds(model: ChatSSD, llm: SSDLLM, tiny_engine: SSDEngine) -> None:
    assert model.invoke("Count.", max_new_tokens=5).usage_metadata["output_tokens"] == 5
    assert ChatSSD(engine=tiny_engine, max_new_tokens=5).invoke("Count.").usage_metadata["output_tokens"] == 5
    assert SSDLLM(engine=tiny_engine, max_new_tokens=5).complete("Count.").raw["usage"]["completion_tokens"] == 5
    with pytest.raises(ValueError, match="max_tokens=3 and max_new_tokens=4 are one setting"):
        ChatSSD(max_tokens=3, max_new_tokens=4)


def test_a_history_that_is_too_long_can_be_counted_and_trimmed(model: ChatSSD) -> None:
    history: list[AnyMessage] = [SystemMessage("Be brief.")]
    for _ in range(20):
        history += [HumanMessage("tell me more " * 40), AIMessage("well, then " * 40)]
    history.append(HumanMessage("And now?"))
    limit = model.load().context_length
    assert limit is not None
    assert model.get_num_tokens_from_messages(history) > limit
    kept = trim_messages(
        history, max_tokens=600, token_counter=model, strategy="last", include_system=True, start_on="human"
    )
    assert kept[0] == history[0]
    assert kept[-1].content == "And now?"
    assert len(kept) < len(history)
    with pytest.raises(ContextLengthError):
        model.invoke(history)


def test_errors_are_langchains_too(model: ChatSSD) -> None:
    with pytest.raises(langchain_errors.ContextOverflowError) as overflow:
        model.invoke("word " * 4000)
    assert isinstance(overflow.value, ContextLengthError)
    with pytest.raises(langchain_errors.ModelInvalidRequestError, match="temperature=-1"):
        model.invoke("Hello", temperature=-1)
    with pytest.raises(langchain_errors.ModelTimeoutError) as late:
        model.invoke("Hello", max_tokens=1500, timeout=0.01)
    assert isinstance(late.value, RequestTimeoutError)
    nowhere = ChatSSD(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(langchain_errors.ModelConnectionError):
        nowhere.invoke("Hello")
    with pytest.raises(langchain_errors.ContextOverflowError):
        list(model.stream("word " * 4000))


def test_an_agent_whose_history_is_too_long_summarises_it(model: ChatSSD) -> None:
    middleware = SummarizationMiddleware(
        model=model, trigger=("tokens", 10**6), keep=("messages", 2), trim_tokens_to_summarize=None
    )
    agent = create_agent(model, [], middleware=[middleware])
    history = [*[HumanMessage("tell me more " * 100), AIMessage("well, then " * 100)] * 8, HumanMessage("And now?")]
    with pytest.raises(ContextLengthError):
        model.invoke(history)
    out = agent.invoke({"messages": history})["messages"]
    assert isinstance(out[-1], AIMessage)


def test_the_profile_knows_the_window_before_anything_is_loaded(tiny_engine: SSDEngine) -> None:
    assert ChatSSD().profile["max_input_tokens"] == 32_768
    SummarizationMiddleware(model=ChatSSD(), trigger=("fraction", 0.8), keep=("messages", 4))
    assert ChatSSD(engine=tiny_engine).profile["max_input_tokens"] == tiny_engine.context_length
    assert ChatSSD(profile={"max_input_tokens": 100}).profile == {"max_input_tokens": 100}


def test_the_profile_of_a_pair_in_folders_is_read_there(pair_options: list[str]) -> None:
    _, target, _, draft = pair_options
    model = ChatSSD(model=target, draft=draft, max_tokens=2)
    before = model.profile["max_input_tokens"]
    assert before == model.load().context_length


def test_a_model_that_has_answered_is_copied_and_pickled(pair_options: list[str], model: ChatSSD) -> None:
    _, target, _, draft = pair_options
    named = ChatSSD(model=target, draft=draft, max_tokens=2)
    answer = named.invoke("Hello").content
    for copied in (copy.deepcopy(named), named.model_copy(deep=True), pickle.loads(pickle.dumps(named))):
        assert copied.invoke("Hello").content == answer
        assert copied.load() is named.load()
    assert copy.deepcopy(model).load() is model.load()
    with pytest.raises(TypeError, match="name the pair instead"):
        pickle.dumps(model)


def test_names_that_mean_nothing_are_errors() -> None:
    for own in (ChatSSD, SSDLLM):
        with pytest.raises(ValueError, match="no field 'tempreature'; is 'temperature' meant"):
            own(tempreature=0.9)
        with pytest.raises(ValueError, match="no field 'n_ctx'; leave it out"):
            own(n_ctx=8192)


def test_tools_that_another_provider_runs_are_refused_by_name(model: ChatSSD) -> None:
    with pytest.raises(InvalidRequestError, match="'web_search_20250305', which another provider runs"):
        model.bind_tools([{"type": "web_search_20250305", "name": "web_search"}]).invoke("Hello")


# -- Schemas --


def test_what_a_schema_has_that_cannot_be_enforced_is_left_to_pydantic(
    model: ChatSSD, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of.cache_clear()
    for _ in range(2):
        answer = model.with_structured_output(Review, include_raw=True).invoke("Review a lamp.", max_tokens=400)
    assert caplog.text.count("uniqueItems") == 1
    assert caplog.text.count("format: path") == 1
    assert answer["raw"].content.startswith('{"tags": [')
    with pytest.raises(InvalidRequestError, match="uniqueItems"):
        model.with_structured_output(Review, strict=True).invoke("Review a lamp.")


def test_an_agent_with_such_an_answer_is_built_and_asked(model: ChatSSD) -> None:
    agent = create_agent(model, [], response_format=Review)
    # The model writes what it likes within the schema, and is cut off; the request is none that cannot be used.
    with pytest.raises(StructuredOutputValidationError, match="Review"):
        agent.invoke({"messages": "Review a lamp."})


def test_keys_of_a_list_are_enforced(model: ChatSSD) -> None:
    class Scores(BaseModel):
        """Scores."""

        scores: dict[Colour, bool]

    answer = model.with_structured_output(Scores).invoke("Score a lamp.", max_tokens=60)
    assert set(answer.scores) <= set(Colour)


def test_patterns_of_another_dialect_are_passed_over(model: ChatSSD, caplog: pytest.LogCaptureFixture) -> None:
    schema = {"title": "Word", "type": "object", "properties": {"word": {"type": "string", "pattern": r"^(?=a)\w+"}}}
    warn_of.cache_clear()
    model.with_structured_output(schema, include_raw=True).invoke("A word.")
    assert "pattern" in caplog.text
    with pytest.raises(InvalidRequestError, match="look-around"):
        model.with_structured_output(schema, strict=True).invoke("A word.")


def test_recursive_models_are_followed_in_langchain(model: ChatSSD) -> None:
    answer = model.with_structured_output(Node, include_raw=True).invoke("The folder src.", max_tokens=60)
    follows(answer["raw"].content)
    specification = model.bind_tools([Node]).kwargs["tools"][0]["function"]["parameters"]
    assert specification["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}


def test_recursive_models_are_followed_in_llama_index(llm: SSDLLM) -> None:
    tool = get_function_tool(Node)
    response = llm.chat_with_tools([tool], "The folder src.", tool_required=True, max_tokens=60)
    (cut,) = response.message.additional_kwargs["invalid_tool_calls"]
    _, _, arguments = str(cut).partition('"arguments": ')
    follows(arguments)


def follows(text: str) -> None:
    """The beginning of a Node, however it goes on."""
    assert text.startswith('{"name": "')
    _, _, rest = text.partition('"children": [')
    assert rest[:1] in {"", "{", "]"}


def test_generic_models_are_found_again(llm: SSDLLM) -> None:
    found = llm.structured_predict(Found[bool], PromptTemplate("Is Paris in France?"), {"max_tokens": 40})
    assert isinstance(found, Found)


# -- Agents --


def write_file(path: str, content: str) -> str:
    """Write a file."""
    return "written"


async def test_a_call_that_is_cut_off_is_told_to_the_user(model: ChatSSD, llm: SSDLLM) -> None:
    note = "[The call of write_file was cut off after max_tokens=40: allow more tokens, or ask for less at once.]"
    bound = model.bind_tools([write_file], tool_choice="any")
    answer = bound.invoke("Write page.html.", max_tokens=40)
    assert answer.content == note
    assert answer.invalid_tool_calls[0]["name"] == "write_file"
    chunks = [chunk async for chunk in bound.astream("Write page.html.", max_tokens=40)]
    assert "".join(chunk.content for chunk in chunks) == note
    tool = FunctionTool.from_defaults(write_file)
    response = llm.chat_with_tools([tool], "Write page.html.", tool_required=True, max_tokens=40)
    assert response.message.content == note
    *_, last = llm.stream_chat_with_tools([tool], "Write page.html.", tool_required=True, max_tokens=40)
    assert last.message.content == note


def test_the_same_call_is_not_made_twice_in_one_answer(model: ChatSSD) -> None:
    def go() -> str:
        """Go."""
        return "gone"

    bound = model.bind_tools([go], tool_choice="any")
    for seed in range(5):
        answer = bound.invoke("Go.", temperature=1.0, seed=seed, max_tokens=400)
        assert [call["args"] for call in answer.tool_calls] == [{}]
        assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_prompts_can_be_packed_by_the_pairs_own_tokens(llm: SSDLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "\n".join(f"{i},{i * 987654321 % 10**9}" for i in range(300))
    monkeypatch.setattr(Settings, "_tokenizer", llm.tokenizer)
    index = SummaryIndex.from_documents([Document(text=rows)], embed_model=MockEmbedding(embed_dim=8))
    answer = index.as_query_engine(llm=llm, response_mode="compact").query("How many columns?")
    assert str(answer)
