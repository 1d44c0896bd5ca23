"""MatchRates: how often drafted tokens match, by the draft's own probability of them."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field

_BOUNDS = (0.3, 0.5, 0.7, 0.9, 0.97)
"""Between the classes of the draft's probability."""
_USUAL = (0.3, 0.45, 0.6, 0.75, 0.9, 0.97)
"""Rates of the classes that are assumed before anything was seen."""
_PRIOR_WEIGHT = 10.0
_FORGETTING = 0.98


@dataclass
class MatchRate:
    """Running share of drafts that matched, starting from what is expected; older ones count for less and less."""

    expected: float
    _matched: float = field(default=0.0, init=False)
    _seen: float = field(default=0.0, init=False)

    @property
    def value(self) -> float:
        """The share."""
        return (self._matched + _PRIOR_WEIGHT * self.expected) / (self._seen + _PRIOR_WEIGHT)

    def record(self, *, matched: bool) -> None:
        """Enter one draft."""
        self._matched = _FORGETTING * self._matched + matched
        self._seen = _FORGETTING * self._seen + 1


class MatchRates:
    """The shares of drafts that match, of all and by the draft's probability of them."""

    def __init__(self) -> None:
        self._all = MatchRate(0.8)
        self._classes = [MatchRate(rate) for rate in _USUAL]

    @property
    def mean(self) -> float:
        """Of a token that is not drafted yet."""
        return self._all.value

    def of(self, probability: float) -> float:
        """Of a token that the draft gives this probability."""
        return self._classes[bisect(_BOUNDS, probability)].value

    def record(self, probability: float, *, matched: bool) -> None:
        """Enter one drafted token."""
        self._all.record(matched=matched)
        self._classes[bisect(_BOUNDS, probability)].record(matched=matched)
