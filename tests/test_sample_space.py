"""Sample spaces and composite against their definition, on distributions with many ties."""

from __future__ import annotations

import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_engine.sample_space import SampleSpace, sample_spaces, top_ids


def distribution(weights: list[int]) -> list[float]:
    total = sum(weights) or 1
    return (torch.tensor(weights, dtype=torch.float32) / total).tolist()


def distributions(size: int) -> st.SearchStrategy[list[float]]:
    # Few different weights, so that ties (zeros among them) are everywhere.
    return st.lists(st.integers(0, 6), min_size=size, max_size=size).map(distribution)


pairs = st.integers(1, 60).flatmap(
    lambda size: st.lists(st.tuples(distributions(size), distributions(size)), min_size=1, max_size=4)
)


def members(space: SampleSpace, position: int) -> set[int]:
    ids = space.ids[position][space.member[position]].tolist()
    assert len(ids) == len(set(ids))
    return set(ids)


@given(pairs, st.integers(1, 12))
@settings(max_examples=300)
def test_spaces_are_those_of_the_definition(positions: list[tuple[list[float], list[float]]], size: int) -> None:
    spaces = sample_spaces(torch.tensor([p for p, _ in positions]), torch.tensor([q for _, q in positions]), size)
    for i, (p_target, p_draft) in enumerate(positions):
        expected, target_stands = reference.intersection(p_target, p_draft, size)
        assert members(spaces.intersection, i) == expected
        assert bool(spaces.intersection.target_stands[i]) == target_stands
        assert members(spaces.union, i) == reference.union(p_target, p_draft, size)


@given(pairs, st.integers(1, 12), st.floats(0, 4))
@settings(max_examples=100)
def test_composite_is_a_distribution_on_the_space(
    positions: list[tuple[list[float], list[float]]], size: int, alpha: float
) -> None:
    rows = [(p, q) for p, q in positions if sum(p) > 0]
    if not rows:
        return
    spaces = sample_spaces(torch.tensor([p for p, _ in rows]), torch.tensor([q for _, q in rows]), size)
    for space in (spaces.intersection, spaces.union):
        probabilities = space.probabilities(alpha)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(rows)))
        assert bool((probabilities >= 0).all())
        assert bool((probabilities[~space.member] == 0).all())


def test_ranks_grow_until_enough_tokens_are_common() -> None:
    """Opposite orders share nothing near the top: with V tokens, k must reach past V / 2."""
    vocab = 1000
    p_target = torch.linspace(1, 2, vocab)[None].softmax(-1)
    space = sample_spaces(p_target, p_target.flip(-1), 10).intersection
    assert space.member.sum() == vocab // 2 + 5
    assert bool(space.target_stands[0])


def test_equal_probabilities_rank_by_id() -> None:
    assert top_ids(torch.tensor([[0.1, 0.3, 0.3, 0.0, 0.3, 0.0]]), 6).tolist() == [[1, 2, 4, 0, 3, 5]]


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 40))
@settings(max_examples=60)
def test_ranks_of_a_large_vocabulary_are_exact(seed: int, values: int, count: int) -> None:
    """Large vocabularies are ranked from a part of their tokens; ties, of which these are full, still go by id."""
    generator = torch.Generator().manual_seed(seed)
    p = distribution(torch.randint(values, (3000,), generator=generator).tolist())
    assert top_ids(torch.tensor([p]), count).tolist() == [reference.ranking(p)[:count]]
    rare = [0.0] * 2990 + [0.1] * 10
    assert top_ids(torch.tensor([rare]), count).tolist() == [reference.ranking(rare)[:count]]
