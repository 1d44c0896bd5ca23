"""Callbacks about risk: they may wait, fail or ask the same engine, and cost nobody else anything."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from conftest import wait_for
from outcomes import CALLERS, Outcome
from transformers import PreTrainedTokenizerFast
from worker_cases import PROMPTS, SHORT, Pair

from ssd_engine import GenerationParams, GenerationResult, SSDConfig, SSDEngine
from ssd_engine.errors import RequestTimeoutError, SSDError

# -- Callbacks --


def one_bin(on_risk: Any) -> GenerationParams:
    return GenerationParams(max_new_tokens=12, on_risk=on_risk, ssd=SSDConfig(bin_size=3))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("stop"), StopIteration("stop")])
@pytest.mark.parametrize("caller", CALLERS)
def test_a_callback_that_ends_the_program_ends_its_own_request(
    tiny_engine: SSDEngine, caller: Any, error: BaseException
) -> None:
    def ends(trace: Any) -> None:
        raise error

    outcome = Outcome(lambda: caller(tiny_engine, [1, 2], one_bin(ends))).get()
    assert isinstance(outcome, SSDError)
    assert type(error).__name__ in str(outcome)
    assert outcome.__cause__ is error
    assert Outcome(lambda: tiny_engine.generate([1, 2], SHORT)).get().token_ids


@pytest.mark.parametrize("caller", CALLERS)
def test_a_callback_may_ask_the_same_engine(tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast, caller: Any) -> None:
    """A judge, on an engine that answers one request at a time."""
    with SSDEngine(*tiny_pair, tokenizer, max_batch_size=1) as engine:
        judged: list[str] = []

        def judge(trace: Any) -> str | None:
            judged.append(engine.generate([7, 8, 9], SHORT).text)
            return "refuse" if len(judged) == 2 else None

        outcome = Outcome(lambda: caller(engine, [1, 2], one_bin(judge))).get()
        assert outcome.finish_reason == "refused"
        assert len(outcome.token_ids) == 6
        assert len(judged) == 2


def test_a_slow_callback_stops_nobody_else(tiny_engine: SSDEngine) -> None:
    released = threading.Event()

    def slow(trace: Any) -> None:
        released.wait()

    waiting = Outcome(lambda: tiny_engine.generate([1, 2], one_bin(slow)))
    others = [Outcome(lambda: tiny_engine.generate([3, 4], SHORT)).get() for _ in range(3)]
    assert all(isinstance(other, GenerationResult) for other in others)
    assert not waiting.is_there
    released.set()
    assert waiting.get().finish_reason == "length"


def test_a_callback_that_never_returns_is_bounded_by_the_timeout(tiny_engine: SSDEngine) -> None:
    released = threading.Event()
    params = one_bin(lambda trace: released.wait() and None).replaced(timeout=0.3)
    assert isinstance(Outcome(lambda: tiny_engine.generate([1, 2], params)).get(), RequestTimeoutError)
    wait_for(lambda: tiny_engine.is_idle)
    released.set()


def test_an_answer_is_the_same_with_a_callback_that_says_nothing(tiny_engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=40, stop=("a",), ssd=SSDConfig(bin_size=3))
    for prompt in PROMPTS:
        expected = tiny_engine.generate(prompt, params)
        result = tiny_engine.generate(prompt, params.replaced(on_risk=lambda trace: None))
        assert result.token_ids == expected.token_ids
        assert result.text == expected.text
        assert result.trace == expected.trace
