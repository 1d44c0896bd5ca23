"""`RemoteEngine` where the way to its server is bad: nothing hangs, is lost, is sent twice or called finished."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from remote_cases import CONFIG, MESSAGES, ROUNDS, Call, answer, chunk, serving, whole

from ssd_engine import GenerationParams
from ssd_engine.errors import (
    EngineClosedError,
    InvalidRequestError,
    SSDError,
)

pytest.importorskip("openai")
from remote_ways import LONG_ENOUGH, every_way, generated

from ssd_engine.remote.engine import RemoteEngine
from ssd_integrations.langchain import ChatSSD


@every_way
def test_an_answer_has_its_tokens_its_trace_and_its_usage(way: str) -> None:
    with serving() as server, RemoteEngine(server.url) as engine:
        result = generated(engine, way)
    assert result.text == "One two three four five"
    assert result.finish_reason == "stop"
    assert result.token_ids == [5, 6, 7, 8, 9]
    assert result.trace.texts == ["One", " two", " three", " four", " five"]
    assert result.trace.round_sizes == [1, 2, 2]
    assert len(result.trace.schemes) == len(result.trace.matched) == len(result.trace.forced) == 5
    assert result.trace.bin_size == CONFIG["bin_size"]
    assert (result.usage.prompt_tokens, result.usage.completion_tokens, result.usage.cached_prompt_tokens) == (12, 5, 4)


def test_each_piece_has_one_round_however_the_events_came() -> None:
    together = [chunk([token for tokens in ROUNDS for token in tokens], "stop", is_first=True)]
    with serving(lambda call: whole(call, together)) as server, RemoteEngine(server.url) as engine:
        pieces = list(engine.stream(MESSAGES))
    assert [piece.token_ids for piece in pieces] == [(5,), (6, 7), (8, 9)]
    for piece in pieces:
        assert len(piece.token_ids) == len(piece.schemes) == len(piece.matched) == len(piece.texts)


def cut_between(call: Call) -> None:
    """As a proxy does that ends the connection in good order."""
    call.begin(is_chunked=False)
    for event in answer()[:2]:
        call.send(event)
    call.cut()


def cut_within(call: Call) -> None:
    """As a proxy does that fails."""
    call.begin()
    for event in answer()[:2]:
        call.send(event)
    call.cut()


def cut_at_once(call: Call) -> None:
    call.cut()


def unfinished(call: Call) -> None:
    """A stream that says it is done, and has not told how the answer ended."""
    whole(call, answer(finish=None))


@every_way
@pytest.mark.parametrize("script", [cut_between, cut_within, cut_at_once, unfinished])
def test_a_connection_that_is_cut_is_no_finished_answer(script: Callable[[Call], None], way: str) -> None:
    with serving(script) as server, RemoteEngine(server.url) as engine:
        with pytest.raises(SSDError, match=f"(?s){server.url}.*broke off"):
            generated(engine, way)
        assert len(server.posts()) == 1, "a generation that may have been done is not asked for again"


@every_way
@pytest.mark.parametrize("reason", ["abort", "error", "content_filter", "whatever"])
def test_an_answer_that_the_server_ends_is_no_finished_one(reason: str, way: str) -> None:
    events = answer(finish=reason)
    with (
        serving(lambda call: whole(call, events)) as server,
        RemoteEngine(server.url) as engine,
        pytest.raises(SSDError, match=reason),
    ):
        generated(engine, way)


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_a_limit_of_the_servers_own_ends_the_answer(reason: str) -> None:
    events = answer(finish=reason)
    with serving(lambda call: whole(call, events)) as server, RemoteEngine(server.url) as engine:
        assert engine.generate(MESSAGES, LONG_ENOUGH).finish_reason == reason


@every_way
def test_an_error_within_a_stream_is_told(way: str) -> None:
    failure = {"error": {"message": "the numbers are not numbers", "type": "InternalServerError", "code": 500}}
    with (
        serving(lambda call: whole(call, [*answer()[:2], failure])) as server,
        RemoteEngine(server.url) as engine,
        pytest.raises(SSDError, match="not numbers"),
    ):
        generated(engine, way)


def test_a_server_without_ssd_is_not_taken_for_one_with_it() -> None:
    plain = [{name: value for name, value in event.items() if name != "ssd"} for event in answer()]
    with (
        serving(lambda call: whole(call, plain)) as server,
        RemoteEngine(server.url) as engine,
        pytest.raises(SSDError, match="ssd serve"),
    ):
        engine.generate(MESSAGES)


def test_tokens_are_counted_without_a_generation() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]

    def script(call: Call) -> None:
        assert call.body["messages"] == MESSAGES
        assert call.body["tools"] == tools
        call.reply(200, {"count": 17, "tokens": list(range(17)), "max_model_len": 512})

    with serving(script) as server, RemoteEngine(server.url) as engine:
        assert engine.count_tokens(MESSAGES, tools=tools) == 17
        assert server.posts() == []
        assert len(server.posts("/v1/tokenize")) == 1


def test_a_text_is_encoded_by_the_server() -> None:
    def script(call: Call) -> None:
        assert call.body["prompt"] == "Hello"
        call.reply(200, {"count": 2, "tokens": [4, 2], "max_model_len": 512})

    with serving(script) as server, RemoteEngine(server.url) as engine:
        assert engine.encode("Hello") == [4, 2]


@pytest.mark.parametrize("strict", [None, True, False])
def test_strict_is_sent(strict: bool | None) -> None:
    schema = {"type": "object", "properties": {}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": schema}}]
    with serving() as server, RemoteEngine(server.url) as engine:
        engine.generate(MESSAGES, GenerationParams(strict=strict), tools=tools)
        engine.generate(MESSAGES, GenerationParams(grammar={"json_schema": schema}))
        engine.generate(MESSAGES, GenerationParams(grammar={"json_schema": schema, "lenient": True}))
        called, exact, lenient = (asked.body for asked in server.posts())
    assert called["tools"][0]["function"].get("strict") is strict
    assert exact["response_format"]["json_schema"]["strict"] is True
    assert lenient["response_format"]["json_schema"]["strict"] is False


def test_models_named_in_calls_share_their_clients() -> None:
    with serving(models=("pair", "other")) as server:
        model = ChatSSD(base_url=server.url)
        for _ in range(5):
            model.invoke("Count.")
            model.invoke("Count.", model="other")
        assert {asked.body["model"] for asked in server.posts()} == {"pair", "other"}
        assert len(server.gets()) == 2
        model.load().close()
        assert model.invoke("Count.").content


def test_a_forked_process_is_told_at_once() -> None:
    with serving() as server, RemoteEngine(server.url) as engine:
        engine.generate(MESSAGES)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                engine.generate(MESSAGES)
            except EngineClosedError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as message:
            assert "fork" in message.read()
        assert engine.generate(MESSAGES).finish_reason == "stop"


@every_way
def test_a_bad_request_is_told_and_costs_nobody_else(way: str) -> None:
    def script(call: Call) -> None:
        if call.body["max_tokens"] == 1:
            call.reply(400, {"error": {"message": "max_tokens is too small", "code": 400}})
        else:
            whole(call)

    with serving(script) as server, RemoteEngine(server.url) as engine:
        with pytest.raises(InvalidRequestError, match="too small"):
            generated(engine, way, GenerationParams(max_new_tokens=1))
        assert generated(engine, way).finish_reason == "stop"
