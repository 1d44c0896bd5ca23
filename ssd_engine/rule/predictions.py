"""Predictions: what one model says of the next token; logits order the tokens, probabilities weigh them.

The order does not depend on the temperature (probabilities below about 1e-45 would all be 0, and tie), nor on the
rounding of softmax, under which neighbouring logits can have one probability. So ranks and greedy choices of one model
go by logits; the composite, and everything that is drawn, by probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One model's predictions at P positions, over a vocabulary of V tokens."""

    logits: Tensor
    """[P, V] float32; -inf for what is not allowed, and more than that for all that is."""
    p: Tensor
    """[P, V] float32 probabilities, each row at its own temperature."""

    @classmethod
    def of(cls, logits: Tensor, temperatures: Tensor | None, allowed: Tensor | None) -> Predictions:
        """Predictions from a model's logits.

        Args:
            logits: [P, V] of any float type.
            temperatures: [P] float32, none of them 0; None: 1 everywhere.
            allowed: [P, V] bool, the tokens that masks allow; None: all.
        """
        logits = masked(logits, allowed)
        return cls(logits=logits, p=tempered(logits, temperatures))

    def at(self, here: slice | Tensor) -> Predictions:
        """Those of some of the positions: a slice, or their indices."""
        return Predictions(logits=self.logits[here], p=self.p[here])


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """[P, V] float32 `logits` [P, V] in which every `allowed` token (None: all) is in front of every other one."""
    logits = logits.float()
    if allowed is None:
        return logits
    return logits.clamp_min(torch.finfo(logits.dtype).min).masked_fill(~allowed, -torch.inf)


def tempered(logits: Tensor, temperatures: Tensor | None) -> Tensor:
    """[P, V] softmax of float32 `logits` [P, V] at `temperatures` [P] float32, none of them 0 (None: 1 everywhere)."""
    if temperatures is None:
        return logits.softmax(-1)
    # The largest logit becomes 0 first: divided by a small temperature it would overflow.
    least = torch.finfo(temperatures.dtype).tiny
    shifted = logits - logits.amax(-1, keepdim=True)
    return (shifted / temperatures.clamp_min(least)[:, None]).softmax(-1)
