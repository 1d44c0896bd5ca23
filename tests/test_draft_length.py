"""Choosing how many tokens to draft."""

from __future__ import annotations

import copy

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SSDConfig, SSDEngine
from ssd_engine.rule.draft_length import LONGEST, Acceptance, PassTimes, best_length, tokens_a_round


def times(**seconds: float) -> PassTimes:
    """Times of passes: `of_3=0.1` is 0.1 s for 3 tokens."""
    table = PassTimes()
    for name, value in seconds.items():
        table.record(int(name.removeprefix("of_")), value)
    return table


def test_a_round_brings_the_matches_and_one_token_more() -> None:
    assert tokens_a_round(0.0, 4) == 1
    assert tokens_a_round(1.0, 4) == 4
    assert tokens_a_round(0.5, 3) == pytest.approx(1 + 0.5 + 0.25)


def test_drafts_that_stand_make_rounds_longer_and_others_shorter() -> None:
    draft, target = times(of_1=0.02), times(of_1=0.1, of_8=0.1)
    assert best_length([0.99], draft, target) == LONGEST
    assert best_length([0.0], draft, target) == 1
    assert 1 < best_length([0.7], draft, target) < LONGEST


def test_a_slow_draft_makes_rounds_shorter() -> None:
    target = times(of_1=0.1, of_8=0.1)
    lengths = [best_length([0.8], times(of_1=seconds), target) for seconds in (0.005, 0.03, 0.1)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_a_full_batch_whose_passes_cost_by_the_token_drafts_less() -> None:
    """Alone a longer pass costs the target nothing; eight sequences are where arithmetic binds."""
    target = times(of_1=0.1, of_8=0.1, of_16=0.2, of_32=0.4, of_64=0.8)
    draft = times(of_1=0.02, of_8=0.03)
    assert best_length([0.8] * 8, draft, target) < best_length([0.8], draft, target)


def test_times_between_and_past_the_sizes_seen_are_estimated() -> None:
    table = times(of_2=0.1, of_4=0.3)
    assert table(3) == pytest.approx(0.2)
    assert table(1) == pytest.approx(0.1)
    assert table(8) == pytest.approx(0.6)


def test_acceptance_follows_what_is_seen() -> None:
    acceptance = Acceptance()
    for _ in range(200):
        acceptance.record(matched=False)
    assert acceptance.rate < 0.1
    for _ in range(200):
        acceptance.record(matched=True)
    assert acceptance.rate > 0.9


def test_in_company_nobody_drafts_more_than_most_want(
    tiny_pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    """On a pair that always agrees, so that a round adds as many tokens as were drafted."""
    target = tiny_pair[0]

    def params(num_draft_tokens: int, max_new_tokens: int) -> GenerationParams:
        return GenerationParams(max_new_tokens=max_new_tokens, ssd=SSDConfig(num_draft_tokens=num_draft_tokens))

    with SSDEngine(target, copy.deepcopy(target), tokenizer) as engine:
        alone = engine.generate([5, 6], params(64, 60))
        assert alone.trace.round_sizes == [60]
        assert alone.trace.num_drafted == alone.trace.num_accepted == 60
        others = [engine.stream([7, 8 + i], params(3, 1500)) for i in range(2)]
        for stream in others:
            next(stream)
        result = engine.generate([5, 6], params(64, 60))
        for stream in others:
            stream.close()
        assert max(result.trace.round_sizes) == 3
        assert result.trace.num_drafted == 60
        assert result.token_ids == alone.token_ids
        greedy = [engine.stream([7, 8 + i], params(64, 1500)) for i in range(2)]
        for stream in greedy:
            next(stream)
        assert max(engine.generate([5, 6], params(64, 60)).trace.round_sizes) == LONGEST
        for stream in greedy:
            stream.close()
