"""Choosing how many tokens to draft."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SSDConfig, SSDEngine
from ssd_engine.backends.transformers.decoder import _most_drafts
from ssd_engine.drafting.draft_length import LONGEST_IN_COMPANY
from ssd_engine.drafting.effort import MOST_POSITIONS
from ssd_engine.drafting.pass_times import PassTimes


def times(**seconds: float) -> PassTimes:
    """Times of passes: `of_3=0.1` is 0.1 s for 3 tokens."""
    table = PassTimes()
    for name, value in seconds.items():
        table.record(int(name.removeprefix("of_")), value)
    return table


def test_times_between_and_past_the_sizes_seen_are_estimated() -> None:
    table = times(of_2=0.1, of_4=0.3)
    assert table(3) == pytest.approx(0.2)
    assert table(1) == pytest.approx(0.1)
    assert table(8) == pytest.approx(0.6)


@pytest.mark.parametrize(("passes", "length"), [(1, 1), (3, 3), (20, LONGEST_IN_COMPANY)])
def test_a_number_of_drafts_makes_nobody_wait_who_chooses_to_draft_less(passes: int, length: int) -> None:
    def sequence(setting: int | str) -> Any:
        verifier = SimpleNamespace(config=SSDConfig(num_draft_tokens=setting))  # type: ignore[arg-type]
        return SimpleNamespace(verifier=verifier, draft=True, num_draft_passes=passes, num_remaining=1000)

    *others, fixed = _most_drafts([*[sequence("auto")] * 7, sequence(64)])
    assert fixed == length
    assert others == [MOST_POSITIONS] * 7


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
        assert max(engine.generate([5, 6], params(64, 60)).trace.round_sizes) == LONGEST_IN_COMPANY
        for stream in greedy:
            stream.close()
