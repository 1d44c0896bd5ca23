"""Guesses at what the draft will say: answers are the same whatever is guessed, only rounds and passes are fewer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import make_model, make_relative
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ssd_engine import GenerationParams, GenerationResult, SignalConfig, SSDConfig, SSDEngine
from ssd_engine.backends.transformers.pass_clock import PassClock
from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.config import Grammar
from ssd_engine.drafting.effort import Effort, Step
from ssd_engine.drafting.lookup import MOST_GUESSES, EarlierAnswers, Guess, Lookup
from ssd_engine.drafting.match_rates import MatchRate, MatchRates
from ssd_engine.drafting.token_index import TokenIndex
from ssd_engine.rule.draft_signals import DraftSignals

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["first", "second", "third"]}, "count": {"type": "integer"}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}
GRAMMARS = [None, Grammar(json_schema=SCHEMA), Grammar(regex="(ab|ba|aab){3,9}!")]
PROMPT = [40, 51, 62, 40, 51, 63, 70, 40, 51]


def assert_same(answer: GenerationResult, other: GenerationResult) -> None:
    """In all that guesses may not change; passes of other sizes round in the last digits."""
    for name in ("matched", "schemes", "bins"):
        assert getattr(answer.trace, name) == getattr(other.trace, name), name
    assert (answer.token_ids, answer.text, answer.finish_reason) == (other.token_ids, other.text, other.finish_reason)
    assert answer.trace.risk_scores == pytest.approx(other.trace.risk_scores, abs=1e-5)
    logprobs = [[entry.logprob for entry in each.logprobs or ()] for each in (answer, other)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


@pytest.fixture(scope="module")
def engine(tokenizer: PreTrainedTokenizerFast) -> Any:
    target = make_model(11, len(tokenizer))
    signals = DraftSignals(refusal_ids=(5, 6, 7, 8))
    with SSDEngine(target, make_relative(target, 12, 0.1), tokenizer, signals=signals) as engine:
        yield engine


def params_of(rng: random.Random, num_draft_tokens: Any) -> GenerationParams:
    signals = SignalConfig(refusal_mass=0.3, kl=0.4, smoothing=2, hold=3)
    return GenerationParams(
        max_new_tokens=rng.randrange(1, 40),
        temperature=rng.choice([0.0, 0.0, 0.8, 1.2]),
        top_k=rng.choice([None, 6]),
        top_p=rng.choice([1.0, 0.8]),
        seed=rng.randrange(1000),
        decoding=rng.choice(["ssd", "ssd", "ssd", "speculative"]),
        logprobs=rng.random() < 0.3,
        grammar=rng.choice(GRAMMARS),
        ssd=SSDConfig(
            num_draft_tokens=num_draft_tokens,
            bin_size=rng.choice([2, 3, 7]),
            match_threshold=rng.choice([0.4, 0.9]),
            signals=rng.choice([None, signals]),
        ),
    )


def oracle(rng: random.Random, answer: Sequence[int], vocab: int, share: float) -> Callable[..., Guess]:
    """Guesses that are right in a share of places: they know the answer."""
    rate = MatchRate(0.9)

    def guess(lookup: Lookup, proposed: Sequence[int]) -> Guess:
        place = len(lookup._latest) - len(PROMPT) + len(proposed)
        following = answer[place : place + rng.randrange(1, MOST_GUESSES + 1)]
        token_ids = [i if rng.random() < share else rng.randrange(vocab) for i in following] or [rng.randrange(vocab)]
        return Guess(token_ids, rate)

    return guess


@settings(max_examples=60)
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_an_answer_is_the_same_whatever_is_guessed(engine: SSDEngine, seed: int, share: float) -> None:
    rng = random.Random(seed)
    state = rng.getstate()
    plain = engine.generate(PROMPT, params_of(rng, 1))
    rng.setstate(state)
    params = params_of(rng, "auto")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Lookup, "guess", oracle(rng, plain.token_ids, 300, share))
        patched.setattr(Effort, "_best_num_guesses", lambda effort, step: step.num_guesses)
        guessed = engine.generate(PROMPT, params)
    assert_same(guessed, plain)


def test_right_guesses_take_fewer_passes_of_the_draft(engine: SSDEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: dict[int, int] = {}
    forward = ModelRunner.forward

    def counted(runner: ModelRunner, *args: Any) -> Any:
        passes[id(runner)] = passes.get(id(runner), 0) + 1
        return forward(runner, *args)

    params = GenerationParams(max_new_tokens=48, ssd=SSDConfig(num_draft_tokens="auto"))
    engine.generate(PROMPT, params)  # measures its passes
    answer = engine.generate(PROMPT, params.replaced(ssd=SSDConfig(num_draft_tokens=3)))
    monkeypatch.setattr(ModelRunner, "forward", counted)
    published = engine.generate(PROMPT, params.replaced(ssd=SSDConfig(num_draft_tokens=3)))
    published_passes, passes = sum(passes.values()), {}
    monkeypatch.setattr(Lookup, "guess", oracle(random.Random(1), answer.token_ids, 10, 1.0))
    monkeypatch.setattr(Effort, "_best_num_guesses", lambda effort, step: step.num_guesses)
    guessed = engine.generate(PROMPT, params)
    assert guessed.token_ids == published.token_ids
    assert sum(passes.values()) < 0.6 * published_passes


def test_a_first_pass_that_takes_long_does_not_make_its_size_seem_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are made for a size when it first comes; a size that seems slow is not chosen, and not measured again."""
    seen: set[tuple[int, int]] = set()

    def seconds(runner: ModelRunner, tokens: int) -> float:
        is_first = (id(runner), tokens) not in seen
        seen.add((id(runner), tokens))
        return 9.0 if is_first else 0.1

    monkeypatch.setattr(ModelRunner, "seconds", seconds)
    model = make_model(11, 300)
    clock = PassClock(ModelRunner(model, 300), ModelRunner(make_relative(model, 12, 0.1), 300))
    clock.calibrate()
    for times in (clock.target_times, clock.draft_times):
        assert [times(tokens) for tokens in (1, 4, 16)] == [0.1] * 3


def test_what_stood_before_is_found_again_by_its_longest_run() -> None:
    index = TokenIndex([1, 2, 3, 4, 9, 2, 3, 5])
    assert index.find([7, 2, 3], 2) == (2, [5]), "of equals the latest"
    assert index.find([1, 2, 3], 2) == (3, [4, 9]), "the longest before the latest"
    assert index.find([3, 9], 2) == (0, []), "nothing like it"
    assert index.find([5], 2) == (0, []), "one token is not enough"
    assert index.find([3, 5], 2) == (0, []), "nothing comes after it"


def test_texts_do_not_continue_each_other() -> None:
    index = TokenIndex([1, 2, 3])
    index.end_text()
    index.extend([4, 5, 6])
    assert index.find([2, 3], 4) == (0, [])
    assert index.find([1, 2], 4) == (2, [3])
    assert index.find([3, 4], 4) == (0, [])


def test_guesses_come_from_prompt_answer_and_earlier_answers() -> None:
    earlier = EarlierAnswers()
    first = Lookup([1, 2, 3], earlier)
    first.extend([20, 21, 22, 23])
    guess = first.guess([1, 2])
    assert guess is not None
    assert guess.token_ids == [3, 20, 21, 22, 23]
    assert first.guess([2, 2]) is None
    second = Lookup([8, 9], earlier)
    assert second.guess([20, 21]) is None, "that answer is not over"
    first.close()
    guess = second.guess([20, 21])
    assert guess is not None
    assert guess.token_ids == [22, 23]
    assert second.guess([1, 2]) is None, "prompts of others are not looked into"


def test_only_the_latest_answers_are_kept() -> None:
    earlier = EarlierAnswers()
    for number in range(40):
        earlier.keep([10_000 + number, 20_000 + number, *range(600)])
    assert earlier.find([10_039, 20_039], 3) == (2, [0, 1, 2])
    assert earlier.find([10_000, 20_000], 3) == (0, [])


def step(**changes: Any) -> Step:
    usual = {"chance": 1.0, "match_rate": 0.9, "guess_rate": 0.0, "num_read": 1, "num_guesses": 0, "is_due": False}
    return Step(**{**usual, **changes})


def effort() -> Effort:
    """A draft of 20 ms and a target of 60 ms, whatever they read."""
    return Effort(lambda tokens: 0.02, lambda tokens: 0.06, 0)


def drafted(chance_each: float) -> int:
    """Tokens that are drafted one by one, each of which matches so often."""
    under_way, number, chance = effort(), 0, 1.0
    while number < 50:
        steps = [step(chance=chance, is_due=number == 0)]
        chosen = under_way.choose(steps)
        if chosen == [None]:
            break
        under_way.record(steps, chosen)
        number, chance = number + 1, chance * chance_each
    return number


def test_a_draft_goes_on_while_it_is_sure() -> None:
    assert drafted(0.05) == 1
    assert 2 <= drafted(0.7) < drafted(0.95) < 50


def test_likely_guesses_are_read_and_unlikely_ones_are_not_where_they_cost() -> None:
    assert effort().choose([step(guess_rate=0.9, num_guesses=15)]) == [15]
    by_the_token = Effort(lambda tokens: 0.02 * tokens, lambda tokens: 0.06 * tokens, 0)
    assert by_the_token.choose([step(guess_rate=0.1, num_guesses=15)]) == [0]


def test_in_company_those_rest_whose_drafts_hardly_match() -> None:
    under_way = Effort(lambda tokens: 0.01 * tokens, lambda tokens: 0.05 + 0.01 * tokens, 0)
    first = [step(is_due=True), step(is_due=True)]
    under_way.record(first, under_way.choose(first))
    assert under_way.choose([step(chance=0.9), step(chance=0.05)]) == [0, None]


def test_match_rates_follow_what_is_seen_by_how_sure_the_draft_was() -> None:
    rates = MatchRates()
    for _ in range(200):
        rates.record(0.99, matched=True)
        rates.record(0.2, matched=False)
    assert rates.of(0.99) > 0.95
    assert rates.of(0.2) < 0.1
    assert 0.3 < rates.mean < 0.7
