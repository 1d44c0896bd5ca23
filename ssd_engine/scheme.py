"""Scheme control: the match ratio of each bin decides between utility and safety (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ssd_engine.config import SSDConfig


class Scheme(StrEnum):
    """The decoding scheme that a token was chosen under."""

    INTERSECTION = "intersection"
    UNION = "union"
    NONE = "none"
    """A baseline (`target`, `speculative`): no scheme was in force."""


@dataclass(frozen=True)
class Bin:
    """One completed match-ratio bin.

    `ratio` is matches / bin size, `threshold` what it was compared with, `scheme` what held during the bin and
    `next_scheme` what follows from it.
    """

    ratio: float
    threshold: float
    scheme: Scheme
    next_scheme: Scheme

    @property
    def is_switch(self) -> bool:
        return self.scheme is not self.next_scheme


@dataclass
class SchemeController:
    """The match-ratio state machine of one sequence; it starts in Intersection."""

    config: SSDConfig
    scheme: Scheme = field(default=Scheme.INTERSECTION, init=False)
    threshold: float = field(init=False)
    _alpha_intersection: float = field(init=False)
    _matches: int = field(default=0, init=False)
    _entries: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._reset()

    @property
    def alpha(self) -> float:
        """Weight of the draft at the next position."""
        return self.config.alpha_union if self.scheme is Scheme.UNION else self._alpha_intersection

    def upcoming_alphas(self, tokens: int) -> tuple[float, ...]:
        """Every weight that Intersection may have at one of the next `tokens` positions."""
        alphas = {self._alpha_intersection}
        for _ in range((self._entries + tokens - 1) // self.config.bin_size):
            alphas |= {self.config.alpha_intersection, *map(self._decayed, alphas)}
        return tuple(sorted(alphas))

    def record(self, matched: bool) -> Bin | None:
        """Enter one chosen token; returns the bin that it completes, if it completes one."""
        self._matches += matched
        self._entries += 1
        if self._entries < self.config.bin_size:
            return None
        ratio = self._matches / self._entries
        self._matches = self._entries = 0
        following = Scheme.UNION if ratio < self.threshold else Scheme.INTERSECTION
        completed = Bin(ratio, self.threshold, self.scheme, following)
        if completed.is_switch:
            self._reset()
        else:
            self._decay()
        self.scheme = following
        return completed

    def _reset(self) -> None:
        self.threshold = self.config.match_threshold
        self._alpha_intersection = self.config.alpha_intersection

    def _decay(self) -> None:
        self.threshold = max(self.threshold - self.config.threshold_decay, 0.0)
        if self.scheme is Scheme.INTERSECTION:
            self._alpha_intersection = self._decayed(self._alpha_intersection)

    def _decayed(self, alpha: float) -> float:
        return max(alpha - self.config.alpha_decay, self.config.alpha_intersection_min)
