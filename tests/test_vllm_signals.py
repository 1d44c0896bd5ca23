"""Signals inside vLLM: the same scores, alarms and answers as in the embedded engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm_cases import PROMPTS, VLLM_OPTIONS

from ssd_engine import DraftSignals, GenerationParams, GenerationResult, Grammar, SSDConfig, SSDEngine
from ssd_engine.config import SIGNALS
from ssd_engine.errors import InvalidRequestError
from ssd_engine.models.checkpoints import fingerprint
from ssd_engine.rule.draft_signals import FILE, Probe

pytest.importorskip("vllm")

REFUSAL_IDS = tuple(range(40, 400, 24))
BREAK_IDS = tuple(range(40, 400, 2))
"""Many, so that these models, which know nothing, have places where one of them is likely."""
BEGUN = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris, of course. The quick brown fox jumps over the lazy dog."},
]


@pytest.fixture(scope="module")
def heard_pair(small_pair: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """The small pair, with signals in the draft's folder for as long as this module runs."""
    draft = AutoModelForCausalLM.from_pretrained(small_pair[1])
    weight = 0.1 * torch.randn(draft.config.hidden_size, generator=torch.Generator().manual_seed(3))
    probe = Probe(layer=1, weight=weight, bias=-0.5, threshold=0.7, false_alarm_rate=0.01)
    DraftSignals(refusal_ids=REFUSAL_IDS, break_ids=BREAK_IDS, probe=probe, fingerprint=fingerprint(draft)).save(
        small_pair[1]
    )
    yield small_pair
    Path(small_pair[1], FILE).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def engines(heard_pair: tuple[str, str]) -> Iterator[tuple[SSDEngine, SSDEngine]]:
    """vLLM's, and the embedded one, which says what is to be."""
    with (
        SSDEngine.from_pretrained(*heard_pair, **VLLM_OPTIONS) as vllm_engine,
        SSDEngine.from_pretrained(*heard_pair, dtype="float32") as embedded,
    ):
        yield vllm_engine, embedded


def settings(**changes: Any) -> SSDConfig:
    signals = {"refusal_mass": 0.2, "probe": 0.8, "kl": 0.3, "hold": 3, **changes}
    return SSDConfig(signals=signals, match_threshold=0.0)


def assert_same(results: list[Any], expected: list[Any]) -> None:
    for result, other in zip(results, expected, strict=True):
        assert isinstance(result, GenerationResult), result
        assert result.token_ids == other.token_ids
        assert result.trace.schemes == other.trace.schemes
        assert result.trace.bins == other.trace.bins
        for name in SIGNALS:
            scores, wanted = (each.trace.signal_scores.get(name, []) for each in (result, other))
            assert scores == pytest.approx(wanted, abs=2e-3)
        alarms, wanted = ([a for a in each.trace.alarms if a.place >= 0] for each in (result, other))
        assert [(a.place, a.signal) for a in alarms] == [(a.place, a.signal) for a in wanted]


@pytest.mark.parametrize("num_prompts", [1, 8])
def test_greedy_answers_equal_the_embedded_engines(engines: tuple[SSDEngine, SSDEngine], num_prompts: int) -> None:
    params = GenerationParams(max_new_tokens=40, ssd=settings())
    vllm_engine, embedded = engines
    expected = embedded.batch(PROMPTS[:num_prompts], params)
    assert_same(vllm_engine.batch(PROMPTS[:num_prompts], params), expected)
    assert all(each.trace.alarms for each in expected if isinstance(each, GenerationResult))


def test_each_request_has_its_own_signals(engines: tuple[SSDEngine, SSDEngine]) -> None:
    vllm_engine, embedded = engines
    several = (None, settings(probe=None, smoothing=3), settings(kl=None, refusal_mass=None, hold=9), settings(probe=0))
    for config in several:
        params = GenerationParams(max_new_tokens=20, ssd=config)
        assert_same(vllm_engine.batch(PROMPTS, params), embedded.batch(PROMPTS, params))


def test_a_grammar_hides_nothing_from_signals(engines: tuple[SSDEngine, SSDEngine]) -> None:
    grammar = Grammar(regex=r"[a-z ]{30,60}")
    params = GenerationParams(max_new_tokens=20, ssd=settings(), grammar=grammar)
    assert_same(*([engine.generate(PROMPTS[0], params)] for engine in engines))


def test_a_given_beginning_brings_union_for_the_first_token(engines: tuple[SSDEngine, SSDEngine]) -> None:
    for hold, smoothing, latch in ((1, 1, False), (60, 1, False), (60, 4, False), (1, 1, True)):
        config = settings(refusal_mass=None, kl=None, probe=0.5, hold=hold, smoothing=smoothing, latch=latch)
        params = GenerationParams(max_new_tokens=12, continue_final_message=True, ssd=config)
        for _ in range(2):  # the second time, from a prompt that vLLM has read before
            result, expected = (engine.generate(BEGUN, params) for engine in engines)
            assert_same([result], [expected])
            assert result.trace.beginning_scores == pytest.approx([max(expected.trace.beginning_scores)], abs=2e-3)
            is_past = max(expected.trace.beginning_scores) >= 0.5
            assert [alarm.place for alarm in result.trace.alarms][:1] == ([-1] if is_past else [])


def test_a_latched_alarm_puts_the_same_word_at_the_first_place(engines: tuple[SSDEngine, SSDEngine]) -> None:
    """The first token is what comes of the draft's word of where it would break off, and not of its own."""
    params = GenerationParams(max_new_tokens=12, continue_final_message=True)
    first_ids = []
    for latch in (False, True):
        config = settings(refusal_mass=0.0, probe=None, kl=None, hold=1, latch=latch)
        result, expected = (engine.generate(BEGUN, params.replaced(ssd=config)) for engine in engines)
        assert_same([result], [expected])
        first_ids.append(result.token_ids[0])
    assert first_ids[0] != first_ids[1]


def test_a_long_beginning_is_read_in_parts(heard_pair: tuple[str, str]) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 6
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    params = GenerationParams(max_new_tokens=8, continue_final_message=True, ssd=settings(kl=None))
    options = {**VLLM_OPTIONS, "engine_args": {"max_num_batched_tokens": 64}}
    with SSDEngine.from_pretrained(*heard_pair, **options) as vllm_engine:
        result = vllm_engine.generate(messages, params)
    with SSDEngine.from_pretrained(*heard_pair, dtype="float32") as embedded:
        expected = embedded.generate(messages, params)
    assert len(expected.trace.beginning_scores) > 64
    assert_same([result], [expected])
    assert result.trace.beginning_scores == pytest.approx([max(expected.trace.beginning_scores)], abs=2e-3)


def test_signals_that_are_not_there_are_told_of(embedded: SSDEngine, small_pair: tuple[str, str]) -> None:
    Path(small_pair[1], FILE).unlink(missing_ok=True)
    with SSDEngine.from_pretrained(*small_pair, **VLLM_OPTIONS) as engine:
        with pytest.raises(InvalidRequestError, match=r"signals\.probe"):
            engine.generate(PROMPTS[0], GenerationParams(max_new_tokens=4, ssd=settings()))
        params = GenerationParams(max_new_tokens=12, ssd=SSDConfig(signals={"kl": 0.3}))
        assert_same([engine.generate(PROMPTS[0], params)], [embedded.generate(PROMPTS[0], params)])
