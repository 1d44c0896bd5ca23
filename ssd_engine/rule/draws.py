"""Draws: the random side of positions, and what is chosen there with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_engine.rule.sample_space import SampleSpace
from ssd_engine.rule.sampling import accept_or_recover, truncate


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random side of P positions."""

    sampled: Tensor
    """[P] bool."""
    drafted: Tensor
    """[P] int64; -1 where nothing was drafted."""
    q_drafted: Tensor
    """[P] the draft's probability of `drafted`."""
    uniforms: Tensor
    """[P, 2] float64: to accept, to recover."""
    truncation: tuple[Tensor, Tensor] | None
    """[P] top-k and [P] top-p; None: everywhere all tokens are kept."""

    def at(self, here: slice | Tensor) -> Draws:
        """Those of some of the positions: a slice, or their indices."""
        return Draws(
            sampled=self.sampled[here],
            drafted=self.drafted[here],
            q_drafted=self.q_drafted[here],
            uniforms=self.uniforms[here],
            truncation=None if self.truncation is None else (self.truncation[0][here], self.truncation[1][here]),
        )

    def choose(self, *, ids: Tensor, p: Tensor, q: Tensor, greedy: Tensor) -> Tensor:
        """[P] sampled tokens of `ids` [P, n] with probabilities `p` [P, n], or the `greedy` [P] choice.

        `q`: [P, n] the draft's probabilities of the same tokens.
        """
        if self.truncation is not None:
            p = truncate(p, *self.truncation)
        chosen = accept_or_recover(
            ids=ids, p=p, q=q, drafted=self.drafted, q_drafted=self.q_drafted, uniforms=self.uniforms
        )
        return torch.where(self.sampled, chosen, greedy)


def choose(space: SampleSpace, alpha: Tensor, draws: Draws | None) -> Tensor:
    """[P] token ids chosen from the composite with weights `alpha` [P]: the likeliest, or drawn where sampled."""
    likeliest = space.likeliest(alpha)
    if draws is None:
        return likeliest
    return draws.choose(ids=space.ids, p=space.probabilities(alpha), q=space.p_draft, greedy=likeliest)


def truncation_of(settings: Sequence[tuple[int | None, float]], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """[P] top-k and [P] top-p as tensors; None where all of `settings` keep every token."""
    if all(top_k is None and top_p >= 1 for top_k, top_p in settings):
        return None
    largest = torch.iinfo(torch.int64).max
    top_k = torch.tensor([largest if top_k is None else top_k for top_k, _ in settings], device=device)
    return top_k, torch.tensor([top_p for _, top_p in settings], device=device)
