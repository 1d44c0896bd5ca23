"""Sample spaces and their composite distribution (paper, section 3.2): pure tensor functions, batched over positions.

Shapes use P for positions (of any rows and rounds), V for the shared vocabulary, n for the candidates kept.
The *rank* of a token is its place in order of falling probability, counted from 0; ties go to the lower token id.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FIRST_DEPTH = 4
"""Ranks looked at first, in multiples of c: ordinary text has c common tokens well before 4c."""
_BLOCK = 64
"""Tokens in one block of a large vocabulary, of which only the blocks with the largest maxima are looked at."""


@dataclass(frozen=True)
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
    """[P] bool: M's own choice stands here, so the composite is p_M and alpha does not enter."""

    def at(self, here: slice | Tensor) -> SampleSpace:
        """The space of some of the positions: a slice, or their indices."""
        return SampleSpace(
            self.ids[here], self.member[here], self.p_target[here], self.p_draft[here], self.target_stands[here]
        )

    def composite(self, alpha: float | Tensor) -> Tensor:
        """[P, n] values p_M + alpha * (p_m - p_M), -inf outside the space. `alpha` is one weight, or [P] of them."""
        weight = torch.where(self.target_stands, 0.0, alpha)[:, None]
        values = self.p_target + weight * (self.p_draft - self.p_target)
        return values.masked_fill(~self.member, -torch.inf)

    def probabilities(self, alpha: float | Tensor) -> Tensor:
        """[P, n] the composite as a distribution: negative values count as 0, and p_M serves where all are 0."""
        weights = self.composite(alpha).clamp_min(0.0)
        fallback = self.p_target.masked_fill(~self.member, 0.0)
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, fallback)
        return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class SampleSpaces:
    """Both schemes' spaces over the same P positions."""

    intersection: SampleSpace
    union: SampleSpace


def sample_spaces(p_target: Tensor, p_draft: Tensor, size: int | Tensor) -> SampleSpaces:
    """Form both sample spaces from two distributions.

    Args:
        p_target: [P, V] float32 p_M.
        p_draft: [P, V] float32 p_m.
        size: c, tokens that the models must have in common, one number or [P] of them; at most V of them are used.
    """
    positions, vocab = p_target.shape
    sizes = torch.as_tensor(size, device=p_target.device).clamp(max=vocab).expand(positions)[:, None]
    largest = min(size if isinstance(size, int) else int(size.max()), vocab)
    depth = min(largest * _FIRST_DEPTH, vocab)
    while True:
        top_target, top_draft = top_ids(p_target, depth), top_ids(p_draft, depth)
        draft_rank_of_target = _ranks_within(top_draft, top_target)
        # r(x) = max of both ranks, for the target's first `depth` tokens; no token outside has a smaller one.
        ranks = torch.arange(depth, device=p_target.device)
        worst_rank = torch.maximum(ranks, draft_rank_of_target)
        if depth == vocab or bool(((worst_rank < depth).sum(-1, keepdim=True) >= sizes).all()):
            break
        depth = min(depth * 4, vocab)
    intersection = _intersection(p_target, p_draft, top_target, draft_rank_of_target, worst_rank, sizes)
    return SampleSpaces(intersection, _union(p_target, p_draft, top_target, top_draft, sizes, largest))


def top_ids(probabilities: Tensor, count: int) -> Tensor:
    """[P, count] ids of the likeliest tokens, in order of rank. `probabilities` is [P, V] float32, none negative."""
    positions, vocab = probabilities.shape
    ids = torch.arange(vocab, device=probabilities.device).expand(positions, vocab)
    if vocab <= count * _BLOCK:
        return _first_ranks(probabilities, ids, count)
    # The first `count` tokens lie in the `count` blocks that rank first by their largest probability: a block left out
    # would have a token in each of these before its own. So only those are ranked, a small part of the vocabulary.
    padded = torch.nn.functional.pad(probabilities, (0, -vocab % _BLOCK)).view(positions, -1, _BLOCK)
    blocks = _first_ranks(padded.amax(-1), ids[:, : padded.shape[1]], count)
    candidates = padded.gather(1, blocks[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    ids = (blocks[..., None] * _BLOCK + torch.arange(_BLOCK, device=blocks.device)).flatten(1)
    return _first_ranks(candidates, ids, count)


def _first_ranks(probabilities: Tensor, ids: Tensor, count: int) -> Tensor:
    """[P, count] of `ids` [P, n], by falling `probabilities` [P, n], then by rising id."""
    # torch.topk leaves ties open. The bits of a non-negative float32 are ordered as the float is, so a key made of
    # these bits and the inverted id orders by falling probability, then by rising id, without any ties.
    keys = (probabilities.contiguous().view(torch.int32).to(torch.int64) << 32) | (0xFFFFFFFF - ids)
    return 0xFFFFFFFF - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)


def _ranks_within(top: Tensor, ids: Tensor) -> Tensor:
    """[P, n] rank of each of `ids` [P, n] among `top` [P, depth]; those that are not there get a rank past all."""
    same = ids[:, :, None] == top[:, None, :]
    return torch.where(same.any(-1), same.int().argmax(-1), torch.iinfo(torch.int64).max)


def _intersection(
    p_target: Tensor,
    p_draft: Tensor,
    top_target: Tensor,
    draft_rank_of_target: Tensor,
    worst_rank: Tensor,
    sizes: Tensor,
) -> SampleSpace:
    last_rank = worst_rank.sort(dim=-1).values.gather(-1, sizes - 1)  # k - 1, the c-th smallest r(x)
    target_stands = draft_rank_of_target[:, 0] > last_rank[:, 0]
    top_k_of_target = torch.arange(top_target.shape[-1], device=top_target.device) <= last_rank
    member = torch.where(target_stands[:, None], top_k_of_target, worst_rank <= last_rank)
    return SampleSpace(
        top_target, member, p_target.gather(-1, top_target), p_draft.gather(-1, top_target), target_stands
    )


def _union(
    p_target: Tensor, p_draft: Tensor, top_target: Tensor, top_draft: Tensor, sizes: Tensor, largest: int
) -> SampleSpace:
    ids = torch.cat([top_target[:, :largest], top_draft[:, :largest]], dim=-1)
    is_top = torch.arange(largest, device=ids.device) < sizes
    is_new = _ranks_within(top_target[:, :largest], top_draft[:, :largest]) >= sizes  # not in the target's top c
    never = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    return SampleSpace(
        ids, torch.cat([is_top, is_top & is_new], dim=-1), p_target.gather(-1, ids), p_draft.gather(-1, ids), never
    )
