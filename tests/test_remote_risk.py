"""`RemoteEngine` and risk: what is kept back, raised, or asked of a callback."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from remote_cases import MESSAGES, RISKY, answer, serving, whole

from ssd_engine import GenerationParams
from ssd_engine.errors import (
    JailbreakRiskError,
    RequestTimeoutError,
    SSDError,
)

pytest.importorskip("openai")
from remote_ways import LONG_ENOUGH, every_way, generated

from ssd_engine.remote.engine import RemoteEngine


def test_a_refusal_keeps_back_what_the_embedded_engine_keeps_back() -> None:
    params = GenerationParams(max_new_tokens=50, on_risk="refuse", refusal_text="No.")
    with serving(lambda call: whole(call, answer(RISKY))) as server, RemoteEngine(server.url) as engine:
        pieces = list(engine.stream(MESSAGES, params))
    result = pieces[-1].result
    assert result is not None
    # The second bin under Union ends with the sixth token: of its round nothing is shown, and nothing after it is kept.
    assert "".join(piece.text for piece in pieces) == "One two three four five\n\nNo."
    assert (result.text, result.finish_reason) == ("No.", "refused")
    assert result.token_ids == [5, 6, 7, 8, 9, 10]
    assert len(result.trace.schemes) == len(result.trace.matched) == len(result.trace.texts) == 6
    assert result.trace.texts[-1] == " six"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (12, 6)
    for piece in pieces:
        assert len(piece.token_ids) == len(piece.schemes) == len(piece.matched)


@every_way
def test_what_is_raised_has_the_text_up_to_the_risk(way: str) -> None:
    params = GenerationParams(max_new_tokens=50, on_risk="raise")
    with (
        serving(lambda call: whole(call, answer(RISKY))) as server,
        RemoteEngine(server.url) as engine,
        pytest.raises(JailbreakRiskError) as caught,
    ):
        generated(engine, way, params)
    assert caught.value.text == "One two three four five six"
    assert len(caught.value.trace.texts) == 6


@every_way
def test_a_callback_may_ask_the_same_engine(way: str) -> None:
    asked: list[str] = []

    def judge(trace: Any) -> None:
        asked.append(engine.generate(MESSAGES, LONG_ENOUGH).text)

    with serving() as server, RemoteEngine(server.url) as engine:
        result = generated(engine, way, GenerationParams(max_new_tokens=50, on_risk=judge))
    assert result.text == "One two three four five"
    assert asked == [result.text] * 2


@every_way
@pytest.mark.parametrize("failure", [SystemExit("enough"), KeyboardInterrupt(), ValueError("a mistake")])
def test_a_callback_that_fails_ends_its_own_request(failure: BaseException, way: str) -> None:
    def fail(trace: Any) -> None:
        raise failure

    kind = type(failure) if isinstance(failure, Exception) else SSDError
    with serving() as server, RemoteEngine(server.url) as engine:
        with pytest.raises(kind):
            generated(engine, way, GenerationParams(max_new_tokens=50, on_risk=fail))
        assert engine.generate(MESSAGES).finish_reason == "stop"


def test_a_callback_that_never_returns_does_not_outlast_the_timeout() -> None:
    stuck = threading.Event()
    params = GenerationParams(max_new_tokens=50, timeout=0.5, on_risk=lambda trace: stuck.wait() and None)
    with serving() as server, RemoteEngine(server.url) as engine:
        with pytest.raises(RequestTimeoutError):
            engine.generate(MESSAGES, params)
        stuck.set()
