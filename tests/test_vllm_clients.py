"""What OpenAI's clients send to `ssd serve` beyond a question."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vllm_cases import Server, serving

from ssd_engine import GenerationParams, SSDEngine

pytest.importorskip("vllm")
openai = pytest.importorskip("openai")

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def server(small_pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(small_pair, tmp_path_factory.mktemp("clients")) as it:
        yield it


def test_several_answers_each_with_its_trace(server: Server) -> None:
    answer = server.ask(QUESTION, n=3, temperature=1.0, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert [len(summary["token_codes"]) > 0 for summary in answer.ssd] == [True] * 3


def test_log_probabilities_are_those_of_the_composite(server: Server, embedded: SSDEngine) -> None:
    content = server.ask(QUESTION, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    params = GenerationParams(max_new_tokens=24, logprobs=True, top_logprobs=2)
    right = embedded.generate([{"role": "user", "content": QUESTION}], params).logprobs or []
    assert [entry.logprob for entry in content] == pytest.approx([entry.logprob for entry in right], abs=1e-3)
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(right)


def test_a_developers_message_is_the_systems(server: Server) -> None:
    def said(role: str) -> str:
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": QUESTION}]
        answer = server.client.chat.completions.create(model="pair", messages=messages, max_tokens=12, temperature=0)
        return str(answer.choices[0].message.content)

    assert said("developer") == said("system")
    assert said("system") != server.ask(QUESTION, max_tokens=12).choices[0].message.content


def test_content_may_come_in_parts(server: Server) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]
    messages = [{"role": "user", "content": parts}]
    answer = server.client.chat.completions.create(model="pair", messages=messages, max_tokens=12, temperature=0)
    joined = server.ask("What is the capital\nof France?", max_tokens=12)
    assert answer.choices[0].message.content == joined.choices[0].message.content


def test_an_image_is_a_bad_request_that_says_so(server: Server) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]
    with pytest.raises(openai.BadRequestError):
        server.client.chat.completions.create(model="pair", messages=[{"role": "user", "content": parts}])


def test_the_responses_api_is_not_there(server: Server) -> None:
    """VLLM's own would answer without SSD."""
    with pytest.raises(openai.NotFoundError):
        server.client.responses.create(model="pair", input=QUESTION)


def test_a_call_that_was_made_already_is_not_told_again(server: Server, embedded: SSDEngine) -> None:
    tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
    params = GenerationParams(max_new_tokens=120, tool_choice="any")
    right = embedded.generate([{"role": "user", "content": QUESTION}], params, tools=[tool])
    assert [call.name for call in right.tool_calls] == ["go"]
    assert right.finish_reason == "tool_calls"
    settings = {"tools": [tool], "tool_choice": "required", "max_tokens": 120}
    assert [call.function.name for call in server.ask(QUESTION, **settings).choices[0].message.tool_calls] == ["go"]
    events = [event for event in server.ask(QUESTION, stream=True, **settings) if event.choices]
    assert sum(len(event.choices[0].delta.tool_calls or ()) for event in events) == 1
