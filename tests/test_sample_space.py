"""Sample spaces and composite against their definition, on logits with many ties."""

from __future__ import annotations

import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_engine.predictions import Predictions
from ssd_engine.sample_space import SampleSpace, SampleSpaces, sample_spaces, top_ids


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
