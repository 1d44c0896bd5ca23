"""Models that reason, behind `ssd serve`: what its clients see of the reasoning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from reasoning_cases import POPULATION, QUESTION, taught
from vllm_cases import KEY, Server, save_pair, serving

from ssd_integrations.langchain import ChatSSD

pytest.importorskip("vllm")
pytest.importorskip("openai")

ASKED = "Two and two?"
ANSWERS = [
    ({"conversation": QUESTION}, "<think>\nTwo and two is four.\n</think>\n\nFour."),
    ({"conversation": QUESTION, "enable_thinking": False}, "It is four."),
    (
        {"conversation": QUESTION, "tools": [POPULATION]},
        '<think>\nI ask.\n</think>\n\n<tool_call>\n{"name": "population", "arguments": {"city": "Lyon"}}\n</tool_call>',
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("reasoning")
    model, tokenizer = taught("qwen3", ANSWERS, hidden_size=128)
    with serving(save_pair(folder, model, model, tokenizer), folder, "--max-model-len", "1024") as it:
        yield it


def test_reasoning_comes_apart_from_the_content(server: Server) -> None:
    answer = server.ask(ASKED, max_tokens=64)
    message = answer.choices[0].message
    assert message.content == "Four."
    assert message.reasoning_content == message.reasoning == "Two and two is four."
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
    assert (
        server.ask(ASKED, max_tokens=64, extra_body={"include_reasoning": False}).choices[0].message.reasoning is None
    )


def test_reasoning_is_streamed(server: Server) -> None:
    deltas = [event.choices[0].delta for event in server.ask(ASKED, max_tokens=64, stream=True) if event.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Two and two is four."
    assert "".join(delta.content or "" for delta in deltas) == "Four."


@pytest.mark.parametrize(
    "extra",
    [{"reasoning": False}, {"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}],
    ids=str,
)
def test_reasoning_is_turned_off_in_each_clients_way(server: Server, extra: dict[str, Any]) -> None:
    message = server.ask(ASKED, max_tokens=64, extra_body=extra).choices[0].message
    assert (message.content, message.reasoning) == ("It is four.", None)


def test_reasoning_that_the_model_cannot_have_is_a_bad_request(server: Server) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="has no levels; give True or False"):
        server.ask(ASKED, extra_body={"reasoning": "low"})


@pytest.mark.parametrize(
    "extra",
    [
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_structured_outputs_come_behind_the_reasoning(server: Server, extra: dict[str, Any]) -> None:
    message = server.ask(ASKED, max_tokens=64, extra_body=extra).choices[0].message
    assert message.reasoning == "Two and two is four."
    assert message.content.strip('"') in ("yes", "no")


def test_calls_come_behind_the_reasoning(server: Server) -> None:
    for choice in ("auto", "required"):
        answer = server.ask(ASKED, max_tokens=80, tools=[POPULATION], tool_choice=choice).choices[0]
        assert answer.message.reasoning == "I ask."
        assert [call.function.arguments for call in answer.message.tool_calls] == ['{"city": "Lyon"}']
        assert answer.finish_reason == "tool_calls"


def test_a_remote_model_is_told_of_the_reasoning(server: Server) -> None:
    model = ChatSSD(base_url=server.url, api_key=KEY, max_tokens=64)
    answer = model.invoke(ASKED)
    assert (answer.content, answer.additional_kwargs["reasoning_content"]) == ("Four.", "Two and two is four.")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_token_details"]["reasoning"] > 0
    assert model.invoke(ASKED, reasoning=False).content == "It is four."
