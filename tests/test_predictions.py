"""What a model says of the next token: its order goes by logits, at every temperature, before softmax rounds."""

from __future__ import annotations

import pytest
import reference
import torch
from conftest import make_model, make_relative
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SSDConfig, SSDEngine
from ssd_engine.config import Decoding
from ssd_engine.rule.predictions import Predictions
from ssd_engine.rule.sample_space import sample_spaces
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import Turn, propose, verify


def unembedding(model: PreTrainedModel, logits: torch.Tensor) -> PreTrainedModel:
    """`model`, made to say `logits` [V] of every next token."""
    model.lm_head = torch.nn.Linear(model.config.hidden_size, len(logits))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(logits)
    return model


@pytest.mark.parametrize("decoding", ["speculative", "target"])
def test_greedy_takes_the_larger_of_two_logits_that_have_one_probability(
    decoding: Decoding, tokenizer: PreTrainedTokenizerFast
) -> None:
    """As `generate` does: token 9 is in front of token 5 by so little that softmax rounds it away."""
    logits = torch.full((len(tokenizer),), -1.0)
    logits[5], logits[9] = 1e-9, 2e-9
    assert logits.softmax(-1)[5] == logits.softmax(-1)[9]
    target, draft = (unembedding(make_model(seed, len(tokenizer)), logits) for seed in range(2))
    plain = target.generate(torch.tensor([[3, 4]]), max_new_tokens=4, do_sample=False)[0, 2:].tolist()
    with SSDEngine(target, draft, tokenizer) as engine:
        result = engine.generate([3, 4], GenerationParams(max_new_tokens=4, decoding=decoding))
    assert result.token_ids == plain == [9] * 4


def test_where_the_targets_own_choice_stands_it_is_the_one_with_the_largest_logit() -> None:
    target, draft = torch.full((1, 8), -1.0), torch.full((1, 8), -1.0)
    target[0, [2, 6]] = torch.tensor([1e-9, 2e-9])
    draft[0, [0, 1, 3]] = torch.tensor([9.0, 8.0, 7.0])
    verifier = Verifier(GenerationParams(max_new_tokens=1), SSDConfig(sample_space_size=1), ())
    (choices,) = verify([Turn(verifier, [0])], target, draft, propose(draft, [verifier], [0]))
    assert isinstance(choices, list)
    assert choices[0].token_id == reference.ranking(target[0].tolist())[0] == 6


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.15, 1.0, 20.0])
def test_sample_spaces_are_the_same_at_every_temperature(temperature: float) -> None:
    """At 0.05 nearly all probabilities are 0, in float32 as in any float; the tokens keep their order all the same."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(40, 300, generator=generator) * 4
    draft = target + torch.randn(40, 300, generator=generator)
    warm, cold = (
        sample_spaces(*(Predictions.of(logits, temperatures, None) for logits in (target, draft)), 10)
        for temperatures in (None, torch.full((40,), temperature))
    )
    for expected, space in ((warm.intersection, cold.intersection), (warm.union, cold.union)):
        assert torch.equal(space.ids, expected.ids)
        assert torch.equal(space.member, expected.member)
        assert torch.equal(space.target_stands, expected.target_stands)
        assert bool((space.probabilities(0.3).sum(-1) - 1).abs().max() < 1e-5)


@pytest.mark.parametrize("temperature", [0.02, 0.1])
def test_a_cold_answer_is_drawn_from_the_space_of_the_logits(
    temperature: float, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The target's best is the draft's third, so it is in the space, and so is the draft's best, with its weight.

    Ranked by the draft's probabilities, of which all but one are 0, the target's best is behind the tokens with lower
    ids, and would stand alone.
    """
    vocab = len(tokenizer)
    logits = torch.arange(vocab).float() * 20
    target = unembedding(make_model(0, vocab), logits)
    draft = unembedding(
        make_model(1, vocab), logits + torch.nn.functional.pad(torch.tensor([50.0, 60.0, 0.0]), (vocab - 3, 0))
    )
    config = SSDConfig(sample_space_size=5, alpha_intersection=0.6)
    with SSDEngine(target, draft, tokenizer, config=config) as engine:
        firsts = [
            engine.generate([3], GenerationParams(max_new_tokens=1, temperature=temperature, seed=seed)).token_ids[0]
            for seed in range(200)
        ]
    share = firsts.count(vocab - 2) / len(firsts)
    assert set(firsts) <= {vocab - 1, vocab - 2}
    assert abs(share - 0.6) < 0.12


@pytest.mark.parametrize("decoding", ["ssd", "speculative", "target"])
@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-50])
def test_no_temperature_is_too_small(
    temperature: float, decoding: Decoding, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Divided by it, logits overflow, or float32 has no such number; what is left to draw is the likeliest token."""
    target = make_model(3, len(tokenizer))
    with SSDEngine(target, make_relative(target, 4, 0.1), tokenizer) as engine:
        params = GenerationParams(max_new_tokens=12, temperature=temperature, seed=1, decoding=decoding)
        sampled = engine.generate([9, 8, 7], params)
        greedy = engine.generate([9, 8, 7], GenerationParams(max_new_tokens=12, decoding="target"))
    assert len(sampled.token_ids) == 12
    if decoding != "ssd":
        assert sampled.token_ids == greedy.token_ids


@given(
    st.lists(
        st.tuples(st.sampled_from([-torch.inf, -3e38, -5.0, 0.0, 2.0, 3e38]), st.booleans()), min_size=1, max_size=9
    ).filter(lambda tokens: any(is_allowed for _, is_allowed in tokens)),
    st.sampled_from([1e-50, 0.1, 1.0, 3.0]),
)
def test_allowed_tokens_are_in_front_of_all_others_and_alone_have_probability(
    tokens: list[tuple[float, bool]], temperature: float
) -> None:
    logits, allowed = (torch.tensor([column]) for column in zip(*tokens, strict=True))
    predictions = Predictions.of(logits, torch.tensor([temperature]), allowed)
    assert predictions.logits[allowed].min() > -torch.inf
    assert bool((predictions.logits[~allowed] == -torch.inf).all())
    assert bool((predictions.p[~allowed] == 0).all())
    torch.testing.assert_close(predictions.p.sum(-1), torch.ones(1))
