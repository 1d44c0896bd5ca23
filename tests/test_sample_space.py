"""Sample spaces and composite against their definition, on logits with many ties."""

from __future__ import annotations

from typing import Any

import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ssd_engine import GenerationParams, SSDConfig
from ssd_engine.config import Decoding
from ssd_engine.rule.predictions import Predictions
from ssd_engine.rule.sample_space import SampleSpace, SampleSpaces, sample_spaces, top_ids
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import Turn, verify


def all_logits(size: int) -> st.SearchStrategy[list[float]]:
    # Few different numbers, so that ties are everywhere; both signs, and both zeros.
    return st.lists(st.sampled_from([-3.5, -1.0, -0.0, 0.0, 0.25, 2.0]), min_size=size, max_size=size)


pairs = st.integers(1, 60).flatmap(
    lambda size: st.lists(st.tuples(all_logits(size), all_logits(size)), min_size=1, max_size=4)
)


def predictions(rows: list[list[float]], temperature: float = 1.0) -> Predictions:
    return Predictions.of(torch.tensor(rows), torch.full((len(rows),), temperature), None)


def spaces_of(positions: list[tuple[list[float], list[float]]], size: int) -> SampleSpaces:
    target, draft = zip(*positions, strict=True)
    return sample_spaces(predictions(list(target)), predictions(list(draft)), size)


def members(space: SampleSpace, position: int) -> set[int]:
    ids = space.ids[position][space.member[position]].tolist()
    assert len(ids) == len(set(ids))
    return set(ids)


@given(pairs, st.integers(1, 12))
@settings(max_examples=300)
def test_spaces_are_those_of_the_definition(positions: list[tuple[list[float], list[float]]], size: int) -> None:
    spaces = spaces_of(positions, size)
    for i, (target, draft) in enumerate(positions):
        expected, target_stands = reference.intersection(target, draft, size)
        assert members(spaces.intersection, i) == expected
        assert bool(spaces.intersection.target_stands[i]) == target_stands
        assert members(spaces.union, i) == reference.union(target, draft, size)


@given(pairs, st.integers(1, 12), st.floats(0, 4))
@settings(max_examples=100)
def test_composite_is_a_distribution_on_the_space(
    positions: list[tuple[list[float], list[float]]], size: int, alpha: float
) -> None:
    spaces = spaces_of(positions, size)
    for space in (spaces.intersection, spaces.union):
        probabilities = space.probabilities(alpha)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(positions)))
        assert bool((probabilities >= 0).all())
        assert bool((probabilities[~space.member] == 0).all())


def test_ranks_grow_until_enough_tokens_are_common() -> None:
    """Opposite orders share nothing near the top: with V tokens, k must reach past V / 2."""
    vocab = 1000
    rising = torch.linspace(1, 2, vocab)[None]
    target, draft = (Predictions.of(logits, None, None) for logits in (rising, rising.flip(-1)))
    space = sample_spaces(target, draft, 10).intersection
    assert space.member.sum() == vocab // 2 + 5
    assert bool(space.target_stands[0])


def test_equal_logits_rank_by_id() -> None:
    assert top_ids(torch.tensor([[0.1, 0.3, 0.3, -0.0, 0.3, 0.0, -2.0]]), 7).tolist() == [[1, 2, 4, 0, 3, 5, 6]]


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 40))
@settings(max_examples=60)
def test_ranks_of_a_large_vocabulary_are_exact(seed: int, values: int, count: int) -> None:
    """Large vocabularies are ranked from a part of their tokens; ties, of which these are full, still go by id."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randint(values, (3000,), generator=generator) - values // 2).float().tolist()
    assert top_ids(torch.tensor([logits]), count).tolist() == [reference.ranking(logits)[:count]]
    rare = [-torch.inf] * 2990 + [-0.1] * 10
    assert top_ids(torch.tensor([rare]), count).tolist() == [reference.ranking(rare)[:count]]


class Elements(TorchDispatchMode):
    """Counts the elements of the tensors that are made, and stops at one that is larger than `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple) else (made,):
            if isinstance(tensor, torch.Tensor):
                own = tensor.untyped_storage().nbytes() // tensor.element_size()  # views take none of their own
                assert own <= self.most, f"{func} made a tensor of {own} elements"
                self.total += tensor.numel()
        return made


VOCAB = 50_000


def agreeing(positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.randn(positions, VOCAB, generator=torch.Generator().manual_seed(0))
    return target, target + 0.01


def test_positions_that_share_little_cost_no_more_than_a_few_passes_over_the_vocabulary() -> None:
    """Opposite orders at all positions: half the vocabulary has to be ranked before ten tokens are common."""
    rising = torch.arange(VOCAB).float().expand(4, VOCAB)
    target, draft = (Predictions.of(logits, None, None) for logits in (rising, -rising))
    with Elements(most=2 * 4 * VOCAB):
        space = sample_spaces(target, draft, 10).intersection
    assert space.member.sum(-1).tolist() == [VOCAB // 2 + 5] * 4
    assert space.target_stands.all()


def test_one_position_that_shares_little_leaves_the_others_as_cheap_as_they_were() -> None:
    """Its draft puts 3,000 other tokens in front of all that the target finds likely."""
    target, draft = agreeing(24)
    with Elements(most=2 * 24 * VOCAB) as ordinary:
        expected = sample_spaces(Predictions.of(target, None, None), Predictions.of(draft, None, None), 10)
    draft[7, target[7].topk(3000, largest=False).indices] += 100
    with Elements(most=2 * 24 * VOCAB) as odd:
        spaces = sample_spaces(Predictions.of(target, None, None), Predictions.of(draft, None, None), 10)
    assert odd.total < 1.5 * ordinary.total
    others = [i for i in range(24) if i != 7]
    for mine, theirs in ((spaces.intersection, expected.intersection), (spaces.union, expected.union)):
        assert [members(mine, i) for i in others] == [members(theirs, i) for i in others]
    by_target, by_draft = (reference.ranking(logits[7].tolist()) for logits in (target, draft))
    k = next(k for k in range(10, VOCAB) if len(set(by_target[:k]) & set(by_draft[:k])) >= 10)
    assert k > 3000
    assert members(spaces.intersection, 7) == set(by_target[:k]) & set(by_draft[:k])


def test_sequences_without_sample_spaces_add_none_to_a_round() -> None:
    """A target that decodes alone beside SSD: it has no draft to rank, which would be as odd as can be."""
    target, draft = agreeing(8)
    draft[1:] = 0
    drafted = torch.tensor([int(draft[0].argmax())] + [-1] * 7)
    decodings: list[Decoding] = ["ssd"] + ["target"] * 7
    verifiers = [Verifier(GenerationParams(decoding=decoding), SSDConfig(), ()) for decoding in decodings]
    with Elements(most=2 * 8 * VOCAB) as together:
        outcomes = verify([Turn(verifier, [0]) for verifier in verifiers], target, draft, drafted)
    with Elements(most=2 * 8 * VOCAB) as alone:
        verify([Turn(verifier, [0]) for verifier in verifiers[1:]], target[1:], draft[1:], drafted[1:])
    assert [choices[0].token_id for choices in outcomes if isinstance(choices, list)] == target.argmax(-1).tolist()
    assert together.total < 2 * alone.total


def test_numbers_that_have_failed_rank_no_token_that_is_not_there() -> None:
    """Whatever sign NaN has, and wherever it stands, ids stay below the size of the vocabulary, and others exact."""
    vocab = 46 * 64 + 1
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, vocab, generator=generator)
    for row in range(39):
        places = torch.randperm(vocab, generator=generator)[: (1, vocab - 10, vocab)[row % 3]]
        logits[row, places] = torch.nan if row % 2 else -torch.nan
    # The last block, which is filled up, is among the first 40.
    logits[0, : 39 * 64], logits[0, -1] = -torch.nan, torch.nan
    predictions = Predictions.of(logits, None, None)
    spaces = sample_spaces(predictions, predictions, 10)
    for space in (spaces.intersection, spaces.union):
        assert bool((space.ids < vocab).all() & (space.ids >= 0).all())
        assert members(space, 39) == set(reference.ranking(logits[39].tolist())[:10])
