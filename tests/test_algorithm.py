"""The engine's tokens, matches, schemes and ratios are those of the algorithm."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import reference
import torch
from conftest import make_model, make_relative
from scipy.stats import chisquare
from transformers import PreTrainedTokenizerFast

from ssd_engine import GenerationParams, Scheme, SSDConfig, SSDEngine
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import Turn, propose, verify


def random_case(seed: int) -> tuple[SSDConfig, int, int]:
    """Settings, and both models' (padded) vocabulary sizes over a tokenizer's."""
    rng = random.Random(seed)
    config = SSDConfig(
        num_draft_tokens=seed % 8 + 1,
        sample_space_size=rng.choice([1, 3, 10, 40]),
        alpha_intersection=rng.choice([0.3, 0.45, 0.9]),
        alpha_union=rng.choice([0.8, 1.0, 2.0, 3.5]),
        bin_size=rng.choice([1, 2, 3, 7]),
        match_threshold=rng.choice([0.3, 0.6, 0.9]),
        threshold_decay=rng.choice([0.0, 0.1, 0.3]),
        alpha_decay=rng.choice([0.0, 0.15]),
        alpha_intersection_min=rng.choice([0.1, 0.3]),
    )
    return config, rng.choice([0, 5, 32]), rng.choice([0, 5, 32])


@pytest.mark.parametrize("seed", range(56))
def test_greedy_ssd_equals_the_naive_reference(seed: int, tokenizer: PreTrainedTokenizerFast) -> None:
    config, target_padding, draft_padding = random_case(seed)
    target = make_model(seed, len(tokenizer) + target_padding)
    if seed % 2:
        draft = make_model(1000 + seed, len(tokenizer) + draft_padding, hidden_size=16, layers=1)
    else:
        draft = make_relative(target, seed, 0.2)
    rng = random.Random(seed)
    prompt = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 90))]
    draft_prompt = prompt if seed % 3 else [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 40))]
    free = reference.run(target, draft, prompt, draft_prompt, config, 30, set())
    eos = free.token_ids[rng.randrange(3, 30)]
    target.generation_config.eos_token_id = eos

    with SSDEngine(target, draft, tokenizer, config=config) as engine:
        result = engine.generate(prompt, GenerationParams(max_new_tokens=30), draft_prompt)

    expected = reference.run(target, draft, prompt, draft_prompt, config, 30, {eos})
    assert result.token_ids == expected.token_ids
    assert result.trace.matched == expected.matched
    assert result.trace.schemes == expected.schemes
    assert result.trace.match_ratios == expected.ratios
    assert result.trace.rounds == expected.rounds
    assert result.finish_reason == ("stop" if expected.token_ids[-1] == eos else "length")


def test_the_cases_reach_both_schemes_and_mixed_rounds(tokenizer: PreTrainedTokenizerFast) -> None:
    """The comparison above is worth what its cases cover."""
    target = make_model(1, len(tokenizer))
    draft = make_relative(target, 2, 0.15)
    config = SSDConfig(bin_size=2, num_draft_tokens=4)
    with SSDEngine(target, draft, tokenizer, config=config) as engine:
        trace = engine.generate([5, 6, 7], GenerationParams(max_new_tokens=60)).trace
    assert set(trace.schemes) == {Scheme.INTERSECTION, Scheme.UNION}
    assert trace.switches > 1
    assert len(set(trace.round_sizes)) > 2


@pytest.mark.parametrize("decoding", ["speculative", "target"])
@pytest.mark.parametrize("seed", range(6))
def test_lossless_baselines_equal_generate(seed: int, decoding: str, tokenizer: PreTrainedTokenizerFast) -> None:
    target = make_model(seed, len(tokenizer))
    draft = make_relative(target, seed, 0.1)
    prompt = list(range(10 + seed, 40))
    expected = target.generate(torch.tensor([prompt]), max_new_tokens=50, do_sample=False)[0, len(prompt) :].tolist()
    config = SSDConfig(num_draft_tokens=seed + 1)
    with SSDEngine(target, draft, tokenizer, config=config) as engine:
        result = engine.generate(prompt, GenerationParams(max_new_tokens=50, decoding=decoding))
    assert result.token_ids == expected
    assert result.trace.match_ratios == []
    assert set(result.trace.schemes) == {Scheme.NONE}


@pytest.mark.parametrize(("case", "alpha_union"), [(3, 0.8), (4, 2.0), (8, 0.8)])
def test_sampled_ssd_is_distributed_as_the_composite(
    case: int, alpha_union: float, tokenizer: PreTrainedTokenizerFast
) -> None:
    """20,000 rounds of two drafts: bins of one token make the first token decide the scheme of the second."""
    generator = torch.Generator().manual_seed(case)
    logits = torch.randn(2, 24, generator=generator) * 1.5
    draft_logits = logits + torch.randn(2, 24, generator=generator)
    config = SSDConfig(sample_space_size=6, alpha_union=alpha_union, bin_size=1, num_draft_tokens=2)
    turns = [
        Turn(Verifier(GenerationParams(temperature=0.8, seed=case + seed), config, ()), places=(0, 1))
        for seed in range(20_000)
    ]
    verifiers = [turn.verifier for turn in turns]
    for verifier in verifiers[::2]:
        verifier.controller.record(matched=False)  # half of them begin under Union
    drafted = torch.stack(
        [propose(draft_logits[i].expand(len(turns), -1), verifiers, [i] * len(turns)) for i in range(2)], dim=-1
    ).flatten()
    seen: dict[tuple[int, Scheme], Counter[int]] = {}
    for choices in verify(turns, logits.repeat(len(turns), 1), draft_logits.repeat(len(turns), 1), drafted):
        for position, choice in enumerate(choices):
            seen.setdefault((position, choice.scheme), Counter())[choice.token_id] += 1

    assert {scheme for _, scheme in seen} == {Scheme.INTERSECTION, Scheme.UNION}
    for (position, scheme), counts in seen.items():
        p_target, p_draft = (reference.softmax(each[position].tolist(), 0.8) for each in (logits, draft_logits))
        expected = reference.composite_distribution(p_target, p_draft, scheme, config)
        assert set(counts) <= set(expected)
        ids = sorted(expected)
        total = sum(counts.values())
        assert chisquare([counts[i] for i in ids], [expected[i] * total for i in ids]).pvalue > 1e-4


def test_sampled_answers_through_the_engine_follow_the_composite(tokenizer: PreTrainedTokenizerFast) -> None:
    """The first token of many seeded requests, top_k and top_p applied."""
    target = make_model(3, len(tokenizer))
    draft = make_relative(target, 4, 0.3)
    config = SSDConfig(sample_space_size=5)
    prompt = [9, 8, 7]
    p_target = reference.next_probabilities(target, prompt, len(tokenizer))
    p_draft = reference.next_probabilities(draft, prompt, len(tokenizer))
    expected = reference.composite_distribution(p_target, p_draft, Scheme.INTERSECTION, config)
    kept = dict(sorted(expected.items(), key=lambda item: -item[1])[:3])
    with SSDEngine(target, draft, tokenizer, config=config) as engine:
        results = [
            engine.generate(prompt, GenerationParams(max_new_tokens=1, temperature=1.0, top_k=3, seed=seed))
            for seed in range(1500)
        ]
    counts = Counter(result.token_ids[0] for result in results)
    assert set(counts) <= set(kept)
    ids = [i for i in kept if kept[i] > 0.01]
    share = [kept[i] / sum(kept[j] for j in ids) for i in ids]
    total = sum(counts[i] for i in ids)
    assert chisquare([counts[i] for i in ids], [s * total for s in share]).pvalue > 1e-4
