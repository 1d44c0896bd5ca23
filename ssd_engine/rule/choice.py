"""Choice: one token that stands, and what is known of how it was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ssd_engine.rule.scheme import Bin, Scheme
from ssd_engine.rule.signals import Look

NOT_NUMBERS = (
    "the models' probabilities are not numbers (NaN) here: this prompt is too much for their weights or dtype; "
    "try dtype='float32'"
)


@dataclass(frozen=True)
class Choice:
    """One token that stands."""

    token_id: int
    matched: bool
    scheme: Scheme
    bin: Bin | None
    """The match-ratio bin that this token completed."""
    is_forced: bool = False
    """Whether a grammar left no other token; such a token is no match, no mismatch, and in no bin."""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    ends: Literal["stop", "length"] | None = None
    """Why the backend ends the answer with this token, where it does."""
    next_scheme: Scheme = Scheme.NONE
    """The scheme in force after this token, for what a grammar forces there; another backend does not tell it."""
    bridge_mass: float | None = None
    """The draft's probability of tokens that the target lacks, 0 where it is forced; None: both have one vocabulary."""
    look: Look | None = None
    """What the signals said before the token was chosen; None: no signals are used, or the token is forced."""
