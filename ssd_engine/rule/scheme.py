"""Scheme control: the match ratio of each bin decides between utility and safety (paper, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ssd_engine.config import SSDConfig

ROUNDING = 1e-10
"""Settings are decimals, which binary numbers hold with an error; what differs by less than this is equal."""
EXACT_BELOW = 1e5
"""Binary numbers below this have ten decimals to round to."""


class Scheme(StrEnum):
    """The decoding scheme that a token was chosen under."""

    INTERSECTION = "intersection"
    UNION = "union"
    NONE = "none"
    """A baseline (`target`, `speculative`): no scheme was in force."""


@dataclass(frozen=True, kw_only=True)
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
        """Whether the scheme changed at its end."""
        return self.scheme is not self.next_scheme


@dataclass
class SchemeController:
    """The match-ratio state machine of one sequence; it starts in Intersection.

    Threshold and weight are worked out anew from the number of bins that kept their scheme. Taking the decay off step
    by step adds rounding up: 0.6 - 0.1 - ... - 0.1 ends at 2.8e-17, below which a ratio of 0 would lie.
    """

    config: SSDConfig
    scheme: Scheme = field(default=Scheme.INTERSECTION, init=False)
    _kept_bins: int = field(default=0, init=False)
    """Bins since the last switch."""
    _matches: int = field(default=0, init=False)
    _entries: int = field(default=0, init=False)

    @property
    def threshold(self) -> float:
        """What the match ratio of the bin under way will be compared with."""
        return decayed(self.config.match_threshold, self.config.threshold_decay, self._kept_bins, least=0.0)

    @property
    def alpha(self) -> float:
        """Weight of the draft at the next position."""
        if self.scheme is Scheme.UNION:
            return self.config.alpha_union
        return self._alpha_intersection(self._kept_bins)

    def upcoming_alphas(self, tokens: int) -> tuple[float, ...]:
        """Every weight that Intersection may have at one of the next `tokens` positions."""
        kept_bins = {0 if self.scheme is Scheme.UNION else self._kept_bins}
        for _ in range((self._entries + tokens - 1) // self.config.bin_size):
            kept_bins |= {0, *(count + 1 for count in kept_bins)}
        return tuple(sorted(set(map(self._alpha_intersection, kept_bins))))

    def record(self, *, matched: bool) -> Bin | None:
        """Enter one chosen token; returns the bin that it completes, if it completes one."""
        self._matches += matched
        self._entries += 1
        if self._entries < self.config.bin_size:
            return None
        ratio, threshold = self._matches / self._entries, self.threshold
        following = Scheme.UNION if threshold - ratio > ROUNDING else Scheme.INTERSECTION
        completed = Bin(ratio=ratio, threshold=threshold, scheme=self.scheme, next_scheme=following)
        self._matches = self._entries = 0
        self._kept_bins = 0 if completed.is_switch else self._kept_bins + 1
        self.scheme = following
        return completed

    def _alpha_intersection(self, kept_bins: int) -> float:
        config = self.config
        return decayed(config.alpha_intersection, config.alpha_decay, kept_bins, least=config.alpha_intersection_min)


def decayed(start: float, decay: float, times: int, *, least: float) -> float:
    """`start` after `decay` was taken off it a number of `times`, no less than `least`, as exact as decimals are."""
    if not times:
        return start
    value = start - times * decay
    if value - least < ROUNDING:
        return least
    return round(value * 1e10) / 1e10 if value < EXACT_BELOW else value
