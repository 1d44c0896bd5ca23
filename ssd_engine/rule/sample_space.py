"""Sample spaces and their composite distribution (paper, section 3.2): pure tensor functions, batched over positions.

Shapes use P for positions (of any rows and rounds), V for the shared vocabulary, n for the candidates kept.
The *rank* of a token is its place in order of falling logit, counted from 0; ties go to the lower token id.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_engine.rule.predictions import Predictions

_FIRST_DEPTH = 4
"""Ranks looked at first, in multiples of c: ordinary text has c common tokens well before 4c."""
_DEEPER = 4
"""How many times deeper the next look is, at positions where the last one was not deep enough."""
_BLOCK = 64
"""Tokens in one block of a large vocabulary, of which only the blocks with the largest maxima are looked at."""
_ABSENT = torch.iinfo(torch.int64).max
"""A rank past all."""


@dataclass(frozen=True, kw_only=True)
class SampleSpace:
    """The tokens that may be chosen at each of P positions.

    Rows hold n candidates each, of which `member` says which belong; the others are padding.
    """

    ids: Tensor
    """[P, n] int64 token ids."""
    member: Tensor
    """[P, n] bool."""
    p_target: Tensor
    """[P, n] float32: p_M of each candidate."""
    p_draft: Tensor
    """[P, n] float32: p_m of each candidate."""
    target_stands: Tensor
    """[P] bool: M's own choice, which is then the first candidate, stands here: the composite is p_M, without alpha."""

    def at(self, here: slice | Tensor) -> SampleSpace:
        """The space of some of the positions: a slice, or their indices."""
        return SampleSpace(
            ids=self.ids[here],
            member=self.member[here],
            p_target=self.p_target[here],
            p_draft=self.p_draft[here],
            target_stands=self.target_stands[here],
        )

    def narrowed(self) -> SampleSpace:
        """The same with as few candidates as its positions need: the members come first, in their order."""
        order = self.member.sort(dim=-1, descending=True, stable=True).indices
        order = order[:, : int(self.member.sum(-1).max())]
        return SampleSpace(
            ids=self.ids.gather(-1, order),
            member=self.member.gather(-1, order),
            p_target=self.p_target.gather(-1, order),
            p_draft=self.p_draft.gather(-1, order),
            target_stands=self.target_stands,
        )

    def replaced(self, here: Tensor, other: SampleSpace) -> SampleSpace:
        """The same with another space's positions in the places `here`, and as many candidates as the wider has."""
        width = max(self.ids.shape[-1], other.ids.shape[-1])

        def put(mine: Tensor, others: Tensor) -> Tensor:
            return _widened(mine, width).index_copy(0, here, _widened(others, width))

        return SampleSpace(
            ids=put(self.ids, other.ids),
            member=put(self.member, other.member),
            p_target=put(self.p_target, other.p_target),
            p_draft=put(self.p_draft, other.p_draft),
            target_stands=self.target_stands.index_copy(0, here, other.target_stands),
        )

    def composite(self, alpha: float | Tensor) -> Tensor:
        """[P, n] values p_M + alpha * (p_m - p_M), -inf outside the space. `alpha` is one weight, or [P] of them."""
        weight = torch.where(self.target_stands, 0.0, alpha)[:, None]
        values = self.p_target + weight * (self.p_draft - self.p_target)
        return values.masked_fill(~self.member, -torch.inf)

    def likeliest(self, alpha: float | Tensor) -> Tensor:
        """[P] ids of the largest composite value, of equals the lowest; where M's own choice stands, that one."""
        values = self.composite(alpha)
        is_largest = values == values.amax(-1, keepdim=True)
        lowest = self.ids.masked_fill(~is_largest, _ABSENT).amin(-1)
        # M's own choice goes by its logits, like all ranks: two of them may have one probability.
        return torch.where(self.target_stands, self.ids[:, 0], lowest)

    def probabilities(self, alpha: float | Tensor) -> Tensor:
        """[P, n] the composite as a distribution: negative values count as 0, and p_M serves where all are 0."""
        weights = self.composite(alpha).clamp_min(0.0)
        fallback = self.p_target.masked_fill(~self.member, 0.0)
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, fallback)
        return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class SampleSpaces:
    """Both schemes' spaces over the same P positions."""

    intersection: SampleSpace
    union: SampleSpace


@dataclass(frozen=True, kw_only=True)
class _Ranked:
    """Both models' first ranks at P positions."""

    top_target: Tensor
    """[P, depth] ids in order of the target's ranks."""
    top_draft: Tensor
    """[P, depth] ids in order of the draft's ranks."""
    draft_rank: Tensor
    """[P, depth] the draft's rank of each of `top_target`; past all where it is not among the first `depth`."""

    @classmethod
    def of(cls, target: Predictions, draft: Predictions, depth: int) -> _Ranked:
        top_target, top_draft = top_ids(target.logits, depth), top_ids(draft.logits, depth)
        return cls(top_target=top_target, top_draft=top_draft, draft_rank=_ranks_within(top_draft, top_target))

    @property
    def worst_rank(self) -> Tensor:
        """[P, depth] r(x), the larger of both ranks, of each of `top_target`; no token outside has a smaller one."""
        return torch.arange(self.draft_rank.shape[-1], device=self.draft_rank.device).maximum(self.draft_rank)

    def num_common(self) -> Tensor:
        """[P] tokens that are among the first `depth` of both."""
        return (self.draft_rank < self.draft_rank.shape[-1]).sum(-1)


def sample_spaces(target: Predictions, draft: Predictions, size: int | Tensor) -> SampleSpaces:
    """Form both sample spaces.

    Each position is looked at only as deep as it needs, within a factor of `_DEEPER`; time and memory grow in
    proportion to these depths. Whatever the models say, no tensor that is made has more than 2 P V elements.

    Args:
        target: P positions.
        draft: the same positions.
        size: c, tokens that the models must have in common, one number or [P] of them; at least 1 and at most V of
            them are used.
    """
    positions, vocab = target.logits.shape
    device = target.logits.device
    sizes = torch.as_tensor(size, device=device).clamp(1, vocab).expand(positions)
    largest = min(size if isinstance(size, int) else int(sizes.max()), vocab)
    depth = min(largest * _FIRST_DEPTH, vocab)
    ranked = _Ranked.of(target, draft, depth)
    union = _union(target, draft, ranked, sizes, largest)
    intersection = _intersection(target, draft, ranked, sizes)
    here = ((ranked.num_common() < sizes) & ~_are_not_numbers(target, draft)).nonzero()[:, 0]
    deep_target, deep_draft = target.at(here), draft.at(here)
    while len(here):
        depth = min(depth * _DEEPER, vocab)
        ranked = _Ranked.of(deep_target, deep_draft, depth)
        is_enough = ranked.num_common() >= sizes[here]
        if bool(is_enough.any()):
            deep = _intersection(deep_target, deep_draft, ranked, sizes[here]).at(is_enough)
            intersection = intersection.replaced(here[is_enough], deep.narrowed())
            here = here[~is_enough]
            deep_target, deep_draft = target.at(here), draft.at(here)
    return SampleSpaces(intersection=intersection, union=union)


def _widened(candidates: Tensor, width: int) -> Tensor:
    """[P, width] `candidates` [P, n], followed by zeros: no members."""
    return torch.nn.functional.pad(candidates, (0, width - candidates.shape[-1]))


def top_ids(logits: Tensor, count: int) -> Tensor:
    """[P, count] ids of the first ranks, in order. `logits` is [P, V] float32; for rows with NaN it is any ids."""
    positions, vocab = logits.shape
    if vocab <= count * _BLOCK:
        return _first_ranks(logits, torch.arange(vocab, device=logits.device), count)
    # The first `count` tokens lie in the `count` blocks that rank first by their largest logit: a block left out would
    # have a token in each of these before its own. So only those are ranked, a small part of the vocabulary.
    if vocab % _BLOCK:
        logits = torch.nn.functional.pad(logits, (0, -vocab % _BLOCK), value=-torch.inf)
    padded = logits.reshape(positions, -1, _BLOCK)
    blocks = _first_ranks(padded.amax(-1), torch.arange(padded.shape[1], device=logits.device), count)
    candidates = padded.gather(1, blocks[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    ids = (blocks[..., None] * _BLOCK + torch.arange(_BLOCK, device=blocks.device)).flatten(1)
    # The padding has the highest ids, so it ranks behind all tokens; but for NaN, which may be in front of anything.
    return _first_ranks(candidates, ids, count).clamp_max(vocab - 1)


def _first_ranks(logits: Tensor, ids: Tensor, count: int) -> Tensor:
    """[P, count] of `ids`, [P, n] or [n] for all, by falling `logits` [P, n], then by rising id."""
    # torch.topk leaves ties open. The bits of a non-negative float32 are ordered as the float is, and those of a
    # negative one the other way round, until all but the sign are inverted. So a key of these bits, less the id, orders
    # by falling logit, then by rising id, without any ties. Adding 0 makes -0.0 and 0.0 the same.
    bits = (logits + 0.0).contiguous().view(torch.int32)
    bits ^= (bits >> 31).bitwise_and_(0x7FFFFFFF)
    keys = bits.to(torch.int64).bitwise_left_shift_(32).sub_(ids)
    return -keys.topk(count, dim=-1).values & 0xFFFFFFFF


def _ranks_within(top: Tensor, ids: Tensor) -> Tensor:
    """[P, n] rank of each of `ids` [P, n] among `top` [P, depth]; those that are not there get a rank past all."""
    ordered, ranks = top.sort(dim=-1)
    at = torch.searchsorted(ordered, ids.contiguous()).clamp_max(top.shape[-1] - 1)
    return ranks.gather(-1, at).masked_fill(ordered.gather(-1, at) != ids, _ABSENT)


def _are_not_numbers(target: Predictions, draft: Predictions) -> Tensor:
    """[P] bool: where a model has failed, so that no depth would be enough. One such logit spoils all of a row's p."""
    return (target.p[:, 0] + draft.p[:, 0]).isnan()


def _intersection(target: Predictions, draft: Predictions, ranked: _Ranked, sizes: Tensor) -> SampleSpace:
    """The space, which holds where the ranks reach deep enough."""
    worst_rank = ranked.worst_rank
    last_rank = worst_rank.sort(dim=-1).values.gather(-1, sizes[:, None] - 1)  # k - 1, the c-th smallest r(x)
    target_stands = ranked.draft_rank[:, 0] > last_rank[:, 0]
    top_k_of_target = torch.arange(worst_rank.shape[-1], device=worst_rank.device) <= last_rank
    ids = ranked.top_target
    return SampleSpace(
        ids=ids,
        member=torch.where(target_stands[:, None], top_k_of_target, worst_rank <= last_rank),
        p_target=target.p.gather(-1, ids),
        p_draft=draft.p.gather(-1, ids),
        target_stands=target_stands,
    )


def _union(target: Predictions, draft: Predictions, ranked: _Ranked, sizes: Tensor, largest: int) -> SampleSpace:
    top_target, top_draft = ranked.top_target[:, :largest], ranked.top_draft[:, :largest]
    ids = torch.cat([top_target, top_draft], dim=-1)
    is_top = torch.arange(largest, device=ids.device) < sizes[:, None]
    is_new = _ranks_within(top_target, top_draft) >= sizes[:, None]  # not in the target's top c
    return SampleSpace(
        ids=ids,
        member=torch.cat([is_top, is_top & is_new], dim=-1),
        p_target=target.p.gather(-1, ids),
        p_draft=draft.p.gather(-1, ids),
        target_stands=torch.zeros(len(ids), dtype=torch.bool, device=ids.device),
    )
