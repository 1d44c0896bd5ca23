"""Threads that another model, another framework or a tool began are read, as far as a text model can."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from drop_in_cases import llm, model, prompt_of  # noqa: F401 (fixtures)
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock
from pydantic import BaseModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import SSDEngine
from ssd_engine.errors import InvalidRequestError
from ssd_integrations.langchain import ChatSSD
from ssd_integrations.llama_index import SSDLLM

PIXEL = {"type": "image", "base64": "iVBORw0KGgo=", "mime_type": "image/png"}
NO_SYSTEM_ROLE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
"""As Gemma 2's: no system role, and user and assistant by turns."""


class City(BaseModel):
    """A city."""

    name: str


@pytest.fixture(scope="module")
def strict_model(tiny_pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = NO_SYSTEM_ROLE
    with SSDEngine(*tiny_pair, own) as engine:
        yield ChatSSD(engine=engine, max_tokens=40)


THREADS: dict[str, tuple[list[AnyMessage], list[str], list[str]]] = {
    "reasoning": (
        [AIMessage([{"type": "reasoning", "reasoning": "two and two"}, {"type": "text", "text": "four"}])],
        ["four"],
        ["two and two"],
    ),
    "thinking": (
        [AIMessage([{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking"}, "four"])],
        ["four"],
        ["hm", "redacted"],
    ),
    "refusal": ([AIMessage([{"type": "refusal", "refusal": "I would rather not."}])], ["I would rather not."], []),
    "provider's own": (
        [AIMessage([{"type": "web_search_call", "id": "w"}, {"type": "non_standard", "value": {}}, "four"])],
        ["four"],
        ["web_search"],
    ),
    "image in a tool's result": (
        [
            AIMessage("", tool_calls=[{"name": "screenshot", "args": {}, "id": "c1"}]),
            ToolMessage([{"type": "text", "text": "Title: Invoices"}, PIXEL], tool_call_id="c1"),
        ],
        ["Title: Invoices\n[image left out: this model reads text alone]"],
        ["iVBOR"],
    ),
    "MCP resource in a tool's result": (
        [
            AIMessage("", tool_calls=[{"name": "read", "args": {}, "id": "c1"}]),
            ToolMessage([{"type": "resource", "resource": {"uri": "file:///a", "text": "a file"}}], tool_call_id="c1"),
        ],
        ["a file"],
        ["left out"],
    ),
    "calls in additional_kwargs": (
        [
            AIMessage("", additional_kwargs={"function_call": {"name": "population", "arguments": '{"city": "Lyon"}'}}),
            ToolMessage("522000", tool_call_id="c1"),
        ],
        ["population", "Lyon", "522000"],
        [],
    ),
}


@pytest.mark.parametrize("name", THREADS)
def test_a_thread_that_another_model_began_is_read(model: ChatSSD, name: str) -> None:
    messages, kept, left_out = THREADS[name]
    thread: list[AnyMessage] = [HumanMessage("2+2?"), *messages, HumanMessage("Twice that? A number only.")]
    prompt = prompt_of(model, thread)
    assert all(text in prompt for text in kept)
    assert not any(text in prompt for text in left_out)
    assert model.invoke(thread).response_metadata["finish_reason"]


def test_a_users_image_is_an_error_unless_a_note_may_stand_for_it(model: ChatSSD, llm: SSDLLM) -> None:
    asked = [HumanMessage([{"type": "text", "text": "What is this?"}, PIXEL])]
    with pytest.raises(InvalidRequestError, match=r"'image' content.*unsupported_content='placeholder'"):
        model.invoke(asked)
    told = model.model_copy(update={"unsupported_content": "placeholder"})
    assert "What is this?\n[image left out: this model reads text alone]" in prompt_of(told, asked)
    blocks = [TextBlock(text="What is this?"), ImageBlock(url="http://localhost/a.png")]
    with pytest.raises(InvalidRequestError, match="'image' content"):
        llm.chat([ChatMessage(role="user", blocks=blocks)])
    assert llm.chat([ChatMessage(role="user", blocks=blocks)], unsupported_content="placeholder").message.content


def test_llama_index_reads_such_threads_too(llm: SSDLLM) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "screenshot", "arguments": "{}"}}
    for called in (
        ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), ToolCallBlock(tool_name="screenshot")]),
        ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": [call]}),
    ):
        result = ChatMessage(
            role="tool",
            blocks=[TextBlock(text="Title: Invoices"), ImageBlock(url="http://localhost/a.png")],
            additional_kwargs={"tool_call_id": "c1"},
        )
        response = llm.chat([ChatMessage("Which page?"), called, result])
        assert response.raw["finish_reason"]


def test_a_template_without_a_system_role_gets_instructions_from_the_user(strict_model: ChatSSD) -> None:
    prompt = prompt_of(strict_model, [SystemMessage("Be brief."), HumanMessage("Hello")])
    assert prompt == "<|im_start|>user\nBe brief.\n\nHello<|im_end|>\n<|im_start|>assistant"
    answer = strict_model.with_structured_output(City, include_raw=True).invoke("Where is the Eiffel Tower?")
    assert answer["raw"].content.startswith('{"name": "')


def test_a_template_that_wants_turns_gets_them(strict_model: ChatSSD) -> None:
    thread = [AIMessage("Welcome."), HumanMessage("Hello"), HumanMessage("Anyone?"), AIMessage("Yes."), AIMessage("I.")]
    assert prompt_of(strict_model, [*thread, HumanMessage("Good.")]) == (
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nWelcome.<|im_end|>\n"
        "<|im_start|>user\nHello\n\nAnyone?<|im_end|>\n<|im_start|>assistant\nYes.\n\nI.<|im_end|>\n"
        "<|im_start|>user\nGood.<|im_end|>\n<|im_start|>assistant"
    )
    called = [
        HumanMessage("How many?"),
        AIMessage("", tool_calls=[{"name": "population", "args": {"city": "Lyon"}, "id": "c1"}]),
        ToolMessage("522000", tool_call_id="c1", name="population"),
    ]
    assert "Result of population:\n522000" in prompt_of(strict_model, called)


def test_several_system_messages_at_the_head_are_one(model: ChatSSD) -> None:
    prompt = prompt_of(model, [SystemMessage("Be brief."), SystemMessage("Be kind."), HumanMessage("Hello")])
    assert prompt.count("<|im_start|>system") == 1
    assert "Be brief.\n\nBe kind." in prompt
