"""Crossing: where, between two tokens of the target, one of the draft's own tokens may be half written."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


def _nothing() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """What the draft may be about to write, given the target's tokens so far.

    With the probability `fresh` a token of the draft's begins here; else one of K tokens is under way, of which some
    of the target's tokens have been written. The probabilities are 1 together.
    """

    fresh: float = 1.0
    begun: Tensor = field(default_factory=_nothing)
    """[K] int64 ids of the draft's tokens under way."""
    written: Tensor = field(default_factory=_nothing)
    """[K] int64 how many of the target's tokens that spell them have been written."""
    p: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[K] float32."""


BOUNDARY = Crossing()
"""A place where a token of the draft's begins, for certain."""
