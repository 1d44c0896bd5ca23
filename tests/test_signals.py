"""Signals beside the match ratio: what they score, when they ask for Union, and what is told of them."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any

import pytest
from reference import composite, next_logits, softmax, union
from signal_cases import (  # noqa: F401 (fixtures)
    BEGUN,
    BREAK_IDS,
    CALM,
    QUESTION,
    REFUSAL_IDS,
    config,
    engine,
    expected_scores,
    expected_union,
    pair,
    scores_of,
    signals,
    told,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, GenerationResult, Grammar, SafetyTrace, Scheme, SSDConfig, SSDEngine
from ssd_engine.config import SIGNALS
from ssd_engine.errors import JailbreakRiskError
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.rule.signals import Alarm


@pytest.mark.parametrize("seed", range(6))
def test_scores_and_schemes_are_what_the_rule_says(
    pair: tuple[PreTrainedModel, PreTrainedModel], engine: SSDEngine, signals: DraftSignals, seed: int
) -> None:
    prompt = [5 + seed, 90, 33]
    smoothing = 1 + seed % 3
    settings = config(hold=1 + seed, smoothing=smoothing, **CALM)
    assert settings.signals is not None
    result = engine.generate(prompt, GenerationParams(max_new_tokens=40, ssd=settings))
    places = [expected_scores(pair, signals, prompt + result.token_ids[:place]) for place in range(40)]
    for before, here in itertools.pairwise(places):
        here.update({name: before[name] + (score - before[name]) / smoothing for name, score in here.items()})
    for name in SIGNALS:
        assert result.trace.signal_scores[name] == pytest.approx([each[name] for each in places], abs=1e-4)
    assert result.trace.risk_scores == pytest.approx([max(each.values()) for each in places], abs=1e-4)
    asked = expected_union(places, list(result.token_ids), settings.signals)
    assert [scheme is Scheme.UNION for scheme in result.trace.schemes] == asked
    assert sum(asked) > 0


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"temperature": 1.2, "seed": 11, "top_p": 0.9}, id="sampled"),
        pytest.param({"grammar": Grammar(regex=r"(quick brown fox|lazy|dog)(, (jumps|[a-z ]{3,9}))*\.")}, id="grammar"),
        pytest.param({"continue_final_message": True}, id="continued"),
        pytest.param({"continue_final_message": True, "latch": True}, id="latched"),
    ],
)
@pytest.mark.parametrize("is_calm", [True, False])
def test_answers_do_not_depend_on_the_number_of_drafts(
    engine: SSDEngine, params: dict[str, Any], is_calm: bool
) -> None:
    latch, params = params.get("latch", False), {name: each for name, each in params.items() if name != "latch"}
    settings = config(latch=latch, **(CALM if is_calm else {"bin_size": 3}))
    messages = BEGUN if "continue_final_message" in params else QUESTION
    answers = [
        engine.generate(
            messages, GenerationParams(max_new_tokens=40, ssd=settings.replaced(num_draft_tokens=length), **params)
        )
        for length in range(1, 7)
    ]
    for answer in answers[1:]:
        assert told(answer) == told(answers[0])
        assert scores_of(answer) == pytest.approx(scores_of(answers[0]), abs=1e-4)
    assert answers[0].trace.alarms


def test_a_given_beginning_is_scored_place_by_place(
    pair: tuple[PreTrainedModel, PreTrainedModel], engine: SSDEngine, signals: DraftSignals
) -> None:
    """The beginning's own tokens, each at its place; KL is not told there, and the prompt before it is not scored."""
    before, given = given_of(engine)
    result = engine.generate(BEGUN, GenerationParams(max_new_tokens=4, continue_final_message=True, ssd=config()))
    assert result.usage.prompt_tokens == len(before + given)
    places = [expected_scores(pair, signals, before + given[:place]) for place in range(len(given))]
    expected = [max(each["refusal_mass"], each["probe"]) for each in places]
    assert result.trace.beginning_scores == pytest.approx(expected, abs=1e-4)


def test_a_beginning_can_bring_union_for_the_first_token(engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=12, continue_final_message=True)
    free = engine.generate(BEGUN, params.replaced(ssd=config(probe=1.0, **CALM)))
    scores = free.trace.beginning_scores
    # The only place past the threshold is one of the beginning.
    highest = max(scores)
    assert highest > max(free.trace.signal_scores["probe"][:3])
    last = len(scores) - 1 - scores[::-1].index(highest)
    hold = len(scores) - last + 2
    result = engine.generate(BEGUN, params.replaced(ssd=config(probe=highest, hold=hold, **CALM)))
    assert result.trace.schemes[:2] == [Scheme.UNION] * 2
    assert result.trace.alarms[0] == Alarm(
        place=last - len(scores), signal="probe", score=scores[last], threshold=highest
    )
    assert result.trace.risk == "elevated"


def given_of(engine: SSDEngine) -> tuple[list[int], list[int]]:
    """The tokens before the beginning, and the beginning's."""
    before = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    return engine.tokenizer.encode(before), engine.tokenizer.encode(BEGUN[-1]["content"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_latched_alarm_puts_at_the_answers_first_place_what_the_draft_said_where_it_would_break_off(
    pair: tuple[PreTrainedModel, PreTrainedModel], engine: SSDEngine, temperature: float
) -> None:
    target, draft = pair
    vocab = target.config.vocab_size
    before, given = given_of(engine)
    logits = [next_logits(draft, before + given[:place], vocab) for place in range(len(given))]
    masses = [sum(softmax(each)[token_id] for token_id in BREAK_IDS) for each in logits]
    assert max(masses) > 0.5
    breaking = logits[masses.index(max(masses))]
    p_target = softmax(next_logits(target, before + given, vocab), temperature or 1.0)
    p_draft = softmax(breaking, temperature or 1.0)
    settings = config(hold=1, latch=True, refusal_mass=0.0, **CALM)
    result = engine.generate(
        BEGUN,
        GenerationParams(
            max_new_tokens=3,
            continue_final_message=True,
            ssd=settings,
            temperature=temperature,
            seed=1,
            logprobs=True,
            top_logprobs=5,
        ),
    )
    likeliest = composite(p_target, p_draft, union(p_target, p_draft, settings.sample_space_size), settings.alpha_union)
    weights = {token_id: max(weight, 0.0) for token_id, weight in likeliest.items()}
    expected = {token_id: math.log(weight / sum(weights.values())) for token_id, weight in weights.items() if weight}
    assert result.trace.schemes[0] is Scheme.UNION
    refusal_mass = sum(softmax(breaking)[token_id] for token_id in REFUSAL_IDS)
    assert result.trace.signal_scores["refusal_mass"][0] == pytest.approx(refusal_mass, abs=1e-4)
    assert result.logprobs is not None
    if temperature:
        assert result.logprobs[0].logprob == pytest.approx(expected[result.token_ids[0]], abs=1e-3)
    else:
        assert result.token_ids[0] == max(weights, key=lambda token_id: weights[token_id])


def test_without_an_alarm_in_the_beginning_nothing_is_latched(engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=12, continue_final_message=True)
    answers = [
        engine.generate(BEGUN, params.replaced(ssd=config(latch=latch, probe=1.0, **CALM))) for latch in (False, True)
    ]
    assert not answers[0].trace.alarms
    assert told(answers[0]) == told(answers[1])
    assert scores_of(answers[0]) == scores_of(answers[1])


def test_a_grammar_comes_before_a_latched_alarm(engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=8, continue_final_message=True, grammar=Grammar(regex="(yes|no) [a-z]+"))
    answers = [
        engine.generate(BEGUN, params.replaced(ssd=config(hold=99, latch=latch, refusal_mass=0.0, **CALM)))
        for latch in (False, True)
    ]
    assert answers[0].text[:2] in {"ye", "no"}
    assert told(answers[0]) == told(answers[1])
    assert scores_of(answers[0]) == scores_of(answers[1])  # the draft's word at the first place is its own


def test_a_beginning_has_its_scores_also_where_the_prompt_was_kept(
    pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast, signals: DraftSignals
) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 8
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    params = GenerationParams(max_new_tokens=8, continue_final_message=True, ssd=config())
    with SSDEngine(*pair, tokenizer, signals=signals) as engine:
        first, again = (engine.generate(messages, params) for _ in range(2))
    assert again.usage.cached_prompt_tokens > 0
    assert len(first.trace.beginning_scores) > 100
    assert told(again) == told(first)
    assert scores_of(again) == scores_of(first)


def test_a_beginning_that_starts_with_what_joins_the_template_is_found(engine: SSDEngine) -> None:
    """Line ends before the text become one token with the template's own."""
    params = GenerationParams(max_new_tokens=2, continue_final_message=True, ssd=config())
    for content in ("\n\nParis", "P", "<|im_end|>Paris"):
        result = engine.generate([*QUESTION, {"role": "assistant", "content": content}], params)
        assert 0 < len(result.trace.beginning_scores) <= len(engine.encode(content)) + 1


def test_without_signals_and_in_baselines_nothing_is_scored(engine: SSDEngine) -> None:
    plain = engine.generate(QUESTION, GenerationParams(max_new_tokens=8))
    assert plain.trace.risk_scores == []
    assert plain.trace.signal_scores == plain.trace.signal_thresholds == {}
    assert "alarms" not in plain.trace.summary()
    for decoding in ("speculative", "target"):
        baseline, bare = (
            engine.generate(QUESTION, GenerationParams(max_new_tokens=8, decoding=decoding, ssd=settings))
            for settings in (config(), None)
        )
        assert baseline.token_ids == bare.token_ids
        assert not baseline.trace.risk_scores


def test_thresholds_that_nothing_passes_change_nothing(engine: SSDEngine) -> None:
    for prompt in ("The quick brown fox", "naïve café", "system"):
        plain, heard = (
            engine.generate(prompt, GenerationParams(max_new_tokens=40, ssd=settings))
            for settings in (SSDConfig(), SSDConfig(signals=dict.fromkeys(SIGNALS, 1.0)))
        )
        assert told(heard) == told(plain)


def test_each_request_of_a_batch_has_its_own_signals(engine: SSDEngine) -> None:
    settings = [config(), None, config(probe=0.6, hold=1), config(kl=0.5, hold=20), config(refusal_mass=0.2)]
    requests = [
        GenerationParams(max_new_tokens=20, ssd=each, temperature=index % 2, seed=index)
        for index, each in enumerate(settings)
    ]
    alone = [engine.generate(f"The quick {i}", params) for i, params in enumerate(requests)]

    async def together() -> list[GenerationResult]:
        return await asyncio.gather(*(engine.agenerate(f"The quick {i}", each) for i, each in enumerate(requests)))

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert told(one) == told(other)
        assert scores_of(one) == pytest.approx(scores_of(other), abs=1e-4)


def test_forced_tokens_have_no_score_and_do_not_count_as_places(engine: SSDEngine) -> None:
    """An alarm at the first token holds for the second, whatever a grammar forces between them."""
    grammar = Grammar(regex=r"[abc]quick brown fox[abc]quick brown fox[abc]quick brown fox")
    settings = config(hold=2, probe=0.0, **CALM)
    result = engine.generate(QUESTION, GenerationParams(max_new_tokens=60, grammar=grammar, ssd=settings))
    trace = result.trace
    assert sum(trace.forced) > 10
    assert set(trace.schemes) == {Scheme.UNION}
    assert [score for score, forced in zip(trace.risk_scores, trace.forced, strict=True) if forced] == [0.0] * sum(
        trace.forced
    )


# -- on_risk --


def test_a_function_is_asked_where_an_alarm_is_raised(engine: SSDEngine) -> None:
    settings = config(probe=0.8, bin_size=50, hold=2)
    asked: list[int] = []

    def note(trace: SafetyTrace) -> None:
        asked.append(len(trace.schemes))
        assert trace.alarms[-1].place == len(trace.schemes) - 1

    result = engine.generate(QUESTION, GenerationParams(max_new_tokens=40, ssd=settings, on_risk=note))
    assert asked == [alarm.place + 1 for alarm in result.trace.alarms]
    assert len(asked) > 1


def test_refuse_counts_tokens_under_union_whoever_asked_for_it(engine: SSDEngine) -> None:
    settings = config(probe=0.0, bin_size=4, **CALM)
    params = GenerationParams(max_new_tokens=40, ssd=settings, risk_bins=2)
    result = engine.generate(QUESTION, params.replaced(on_risk="refuse"))
    assert result.finish_reason == "refused"
    assert len(result.token_ids) == 8
    with pytest.raises(JailbreakRiskError, match=r"Union held for 2 bins .* alarms: probe"):
        engine.generate(QUESTION, params.replaced(on_risk="raise"))
    assert engine.generate(QUESTION, params).finish_reason == "length"
