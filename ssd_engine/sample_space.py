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

    def at(self, position: int) -> SampleSpace:
        """The space of one position, P = 1."""
        here = slice(position, position + 1)
        return SampleSpace(
            self.ids[here], self.member[here], self.p_target[here], self.p_draft[here], self.target_stands[here]
        )

    def composite(self, alpha: float) -> Tensor:
        """[P, n] values p_M + alpha * (p_m - p_M), -inf outside the space."""
        weight = torch.where(self.target_stands, 0.0, alpha)[:, None]
        values = self.p_target + weight * (self.p_draft - self.p_target)
        return values.masked_fill(~self.member, -torch.inf)

    def probabilities(self, alpha: float) -> Tensor:
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


def sample_spaces(p_target: Tensor, p_draft: Tensor, size: int) -> SampleSpaces:
    """Form both sample spaces from two distributions.

    Args:
        p_target: [P, V] float32 p_M.
        p_draft: [P, V] float32 p_m.
        size: c, tokens that the models must have in common; at most V of them are used.
    """
    vocab = p_target.shape[-1]
    size = min(size, vocab)
    depth = min(size * _FIRST_DEPTH, vocab)
    while True:
        top_target, top_draft = top_ids(p_target, depth), top_ids(p_draft, depth)
        draft_rank_of_target = _ranks_within(top_draft, vocab).gather(-1, top_target)
        # r(x) = max of both ranks, for the target's first `depth` tokens; no token outside has a smaller one.
        ranks = torch.arange(depth, device=p_target.device)
        worst_rank = torch.maximum(ranks, draft_rank_of_target)
        if depth == vocab or bool(((worst_rank < depth).sum(-1) >= size).all()):
            break
        depth = min(depth * 4, vocab)
    intersection = _intersection(p_target, p_draft, top_target, draft_rank_of_target, worst_rank, size)
    target_rank_of_draft = _ranks_within(top_target, vocab).gather(-1, top_draft[:, :size])
    return SampleSpaces(intersection, _union(p_target, p_draft, top_target, top_draft, target_rank_of_draft, size))


def top_ids(probabilities: Tensor, count: int) -> Tensor:
    """[P, count] ids of the likeliest tokens, in order of rank. `probabilities` is [P, V] float32, none negative."""
    vocab = probabilities.shape[-1]
    # torch.topk leaves ties open. The bits of a non-negative float32 are ordered as the float is, so a key made of
    # these bits and the inverted id orders by falling probability, then by rising id, without any ties.
    inverted_ids = torch.arange(vocab - 1, -1, -1, device=probabilities.device)
    keys = (probabilities.contiguous().view(torch.int32).to(torch.int64) << 32) | inverted_ids
    return vocab - 1 - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)


def _ranks_within(top: Tensor, vocab: int) -> Tensor:
    """[P, V] rank of each token among `top` [P, depth]; tokens that are not there get V."""
    ranks = torch.arange(top.shape[-1], device=top.device).expand_as(top)
    return torch.full((top.shape[0], vocab), vocab, device=top.device).scatter_(-1, top, ranks)


def _intersection(
    p_target: Tensor, p_draft: Tensor, top_target: Tensor, draft_rank_of_target: Tensor, worst_rank: Tensor, size: int
) -> SampleSpace:
    last_rank = worst_rank.kthvalue(size, dim=-1, keepdim=True).values  # k - 1, the c-th smallest r(x)
    target_stands = draft_rank_of_target[:, 0] > last_rank[:, 0]
    top_k_of_target = torch.arange(top_target.shape[-1], device=top_target.device) <= last_rank
    member = torch.where(target_stands[:, None], top_k_of_target, worst_rank <= last_rank)
    return SampleSpace(
        top_target, member, p_target.gather(-1, top_target), p_draft.gather(-1, top_target), target_stands
    )


def _union(
    p_target: Tensor, p_draft: Tensor, top_target: Tensor, top_draft: Tensor, target_rank_of_draft: Tensor, size: int
) -> SampleSpace:
    ids = torch.cat([top_target[:, :size], top_draft[:, :size]], dim=-1)
    member = torch.cat([torch.ones_like(target_rank_of_draft, dtype=torch.bool), target_rank_of_draft >= size], dim=-1)
    never = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    return SampleSpace(ids, member, p_target.gather(-1, ids), p_draft.gather(-1, ids), never)
