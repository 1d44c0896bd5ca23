"""One list of behaviours, of an engine in this process and of a server: what they say, and how they fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest
import torch
from conftest import make_model, make_relative, wait_for
from transformers import PreTrainedTokenizerFast
from vllm_behaviours import CASES, FAILURES, POISON, QUESTION, YES, Case, tool
from vllm_cases import KEY, VLLM_OPTIONS, Server, save_pair, serving

from ssd_engine import GenerationParams, GenerationResult, SSDEngine
from ssd_engine.errors import (
    JailbreakRiskError,
)

pytest.importorskip("vllm")
pytest.importorskip("openai")
from ssd_engine.remote.engine import RemoteEngine


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    target = make_model(1, len(tokenizer), hidden_size=128)
    draft = make_relative(target, 2, 0.05)
    (token_id,) = tokenizer(POISON, add_special_tokens=False).input_ids
    with torch.no_grad():
        target.get_input_embeddings().weight[token_id] = torch.nan
        for model in (target, draft):  # neither writes it by itself
            model.get_output_embeddings().weight[token_id] = 0.0
    return save_pair(tmp_path_factory.mktemp("fragile-pair"), target, draft, tokenizer)


@pytest.fixture(scope="module")
def local(pair: tuple[str, str]) -> Iterator[SSDEngine]:
    with SSDEngine.from_pretrained(*pair, **VLLM_OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(pair, folder, "--max-waiting", "4", "--max-batch-size", "4") as server:
        yield server


@pytest.fixture(scope="module")
def remote(server: Server) -> Iterator[SSDEngine]:
    with RemoteEngine(server.url, KEY) as engine:
        yield engine


@pytest.fixture(params=["in this process", "through a server"])
def engine(request: pytest.FixtureRequest) -> SSDEngine:
    name = "local" if request.param == "in this process" else "remote"
    engine: SSDEngine = request.getfixturevalue(name)
    return engine


def told(case: Case, engine: SSDEngine) -> dict[str, Any]:
    """All that an answer says but for times, ids of its calls and what the cache held; or the risk that it raised."""
    try:
        result: GenerationResult = case.ask(engine)
    except JailbreakRiskError as error:
        return {"raised": str(error), "text": error.text, "trace": error.trace}
    logprobs = result.logprobs or []
    return {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.usage.prompt_tokens,
        "completion_tokens": result.usage.completion_tokens,
        "trace": result.trace,
        "calls": [(call.name, call.arguments) for call in result.tool_calls],
        "invalid": [(call.name, call.text, call.error) for call in result.invalid_tool_calls],
        "logprobs": [(each.token_id, each.token, [(i, t) for i, t, _ in each.top]) for each in logprobs],
        "values": pytest.approx([p for each in logprobs for p in (each.logprob, *(p for *_, p in each.top))], abs=1e-3),
    }


@pytest.mark.parametrize("name", CASES)
def test_a_server_says_what_the_engine_in_this_process_says(name: str, local: SSDEngine, remote: SSDEngine) -> None:
    case = CASES[name]
    expected, given = told(case, local), told(case, remote)
    values = expected.pop("values", None), given.pop("values", None)
    assert given == expected
    if values[0] is not None:
        assert values[1] is not None
        assert values[1].expected == values[0]


@pytest.mark.parametrize("name", ["length", "refusal", "refusal by a function", "log-probabilities"])
def test_a_streams_pieces_are_parallel_and_make_the_answer(name: str, engine: SSDEngine) -> None:
    case = CASES[name]
    params = GenerationParams(**{"max_new_tokens": 24, **case.params})
    pieces = list(engine.stream([{"role": "user", "content": QUESTION}], params))
    result = pieces[-1].result
    assert result is not None
    assert [i for piece in pieces for i in piece.token_ids] == result.token_ids
    for piece in pieces:
        assert len(piece.token_ids) == len(piece.schemes) == len(piece.matched) == len(piece.texts)
    trace = result.trace
    assert len(result.token_ids) == len(trace.schemes) == len(trace.matched) == len(trace.texts) == len(trace.forced)
    if result.finish_reason == "refused":
        shown = "".join(piece.text for piece in pieces)
        assert shown.endswith("\n\n" + params.refusal_text)
        *_, last = trace.round_sizes
        assert shown.removesuffix("\n\n" + params.refusal_text) == "".join(trace.texts[: len(trace.texts) - last])
    else:
        assert "".join(piece.text for piece in pieces) == result.text


@pytest.mark.parametrize("name", FAILURES)
def test_a_request_fails_alone_and_says_why(name: str, engine: SSDEngine) -> None:
    case, kind, message = FAILURES[name]
    good = Case({"max_new_tokens": 60})
    alone = good.ask(engine)
    with ThreadPoolExecutor(2) as callers:
        meanwhile = [callers.submit(good.ask, engine) for _ in range(2)]
        with pytest.raises(kind, match=message):
            case.ask(engine)
        for answer in meanwhile:
            assert answer.result().token_ids == alone.token_ids
    assert good.ask(engine).token_ids == alone.token_ids


@pytest.mark.parametrize("is_streamed", [True, False])
def test_numbers_that_are_none_are_told_to_any_client(server: Server, *, is_streamed: bool) -> None:
    import openai

    with pytest.raises(openai.APIError, match="NaN"):
        list(server.ask(f"Hello {POISON}", stream=is_streamed))
    assert server.ask(QUESTION).choices[0].finish_reason == "length"


def test_more_than_a_server_takes_is_answered_all_the_same(remote: SSDEngine) -> None:
    prompts = [[{"role": "user", "content": f"{QUESTION} {place}"}] for place in range(40)]
    params = GenerationParams(max_new_tokens=12)
    results = remote.batch(prompts, params)
    assert [result for result in results if isinstance(result, Exception)] == []


def test_a_busy_server_says_when_to_come_again(server: Server) -> None:
    with ThreadPoolExecutor(24) as callers:
        body = {"model": "pair", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 200}
        headers = {"Authorization": f"Bearer {KEY}"}

        def post(path: str, more: dict[str, Any]) -> httpx.Response:
            return httpx.post(f"{server.url}/{path}", json={**body, **more}, headers=headers, timeout=120)

        chats = [callers.submit(post, "chat/completions", {"ignore_eos": True}) for _ in range(12)]
        plain = [callers.submit(post, "completions", {"prompt": "Hello", "ignore_eos": True}) for _ in range(12)]
        answers = [each.result() for each in (*chats, *plain)]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert sum(answer.status_code == 200 for answer in answers) >= 8
    for answer in answers:
        if answer.status_code == 429:
            assert float(answer.headers["Retry-After"]) > 0


def test_tokens_are_counted_as_here(local: SSDEngine, remote: SSDEngine) -> None:
    conversations: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = [
        ([{"role": "user", "content": QUESTION}], None),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi<|im_end|>"}], None),
        ([{"role": "user", "content": QUESTION}], [tool("look", YES), tool("feel", {"type": "object"})]),
    ]
    for messages, tools in conversations:
        assert remote.count_tokens(messages, tools=tools) == local.count_tokens(messages, tools=tools)
    assert remote.encode("Hello, world") == local.encode("Hello, world")


def test_counting_asks_for_the_key(server: Server) -> None:
    assert httpx.post(f"{server.url}/tokenize", json={"prompt": "Hello"}).status_code == 401


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"documents": [{"text": "A document."}]}, "documents"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"chat_template_kwargs": {"chat_template": "{{ messages }}"}}, "(?i)chat.template"),
        ({"chat_template_kwargs": {"padding": True}}, "padding"),
        ({"structured_outputs": {"grammar": 'root ::= "yes"'}, "tools": [tool("look", YES)]}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "yes"}, "response_format": {"type": "json_object"}},
            "structured_outputs.*response_format",
        ),
    ],
)
def test_what_cannot_be_had_gets_status_400_and_its_name(server: Server, body: dict[str, Any], message: str) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match=message):
        server.ask(QUESTION, extra_body=body)


@pytest.mark.parametrize(
    ("own", "fits"),
    [
        ({"regex": "(yes|no)!"}, lambda text: text in ("yes!", "no!")),
        ({"choice": ["ja.", "nein?"]}, lambda text: text in ("ja.", "nein?")),
        ({"json": YES}, lambda text: isinstance(json.loads(text)["yes"], bool)),
        ({"json": json.dumps(YES)}, lambda text: isinstance(json.loads(text)["yes"], bool)),
    ],
)
def test_a_structure_of_the_request_holds_beside_tools(
    server: Server, own: dict[str, Any], fits: Callable[[str], bool]
) -> None:
    body = {"structured_outputs": own, "tools": [tool("look", YES)], "tool_choice": "auto"}
    choice = server.ask(QUESTION, extra_body=body, max_tokens=80).choices[0]
    if choice.message.tool_calls:
        assert choice.message.tool_calls[0].function.name == "look"
    else:
        assert fits(choice.message.content)


def test_several_answers_of_one_stream_have_their_own_codes(server: Server) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = list(server.ask(QUESTION, n=2, temperature=1.0, seed=3, **options))
    codes = {0: "", 1: ""}
    for event in events:
        for choice in event.choices:
            codes[choice.index] += (event.model_extra.get("ssd") or {}).get("token_codes", "")
    assert [len(codes[index]) for index in (0, 1)] == [24, 24]


def test_a_client_that_leaves_frees_its_place(server: Server, remote: SSDEngine) -> None:
    def running() -> float:
        figures = httpx.get(f"{server.root}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in figures if line.startswith("vllm:num_requests_running{"))

    with closing(
        remote.stream([{"role": "user", "content": QUESTION}], GenerationParams(max_new_tokens=400))
    ) as pieces:
        next(pieces)
        wait_for(lambda: running() == 1)
    wait_for(lambda: running() == 0)
