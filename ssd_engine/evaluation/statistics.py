"""Rates with confidence intervals, and paired differences of rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_Z = 1.959964
"""Of a two-sided interval of 95%."""


@dataclass(frozen=True)
class Rate:
    """`count` of `total`, with Wilson's interval of 95%."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The rate, in [0, 1]."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 1927: it stays within 0 and 1, and says something where the count is 0 or all."""
        n, p = self.total, self.value
        centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def to_json(self) -> dict[str, Any]:
        """For the report's JSON."""
        return {"count": self.count, "total": self.total, "rate": self.value, "interval": self.interval}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f}% [{100 * low:.0f}, {100 * high:.0f}]"


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two rates over the same trials, with an interval of 95% (Agresti and Min 2005)."""

    only_first: int
    only_second: int
    total: int

    @classmethod
    def between(cls, first: Sequence[bool], second: Sequence[bool]) -> PairedDifference:
        """Of the same prompts, in one order."""
        pairs = list(zip(first, second, strict=True))
        return cls(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs), len(pairs))

    @property
    def value(self) -> float:
        """The first rate less the second."""
        return (self.only_first - self.only_second) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the difference (Agresti and Min)."""
        n, b, c = self.total + 2, self.only_first + 0.5, self.only_second + 0.5
        centre = (b - c) / n
        half = _Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
        return max(-1.0, centre - half), min(1.0, centre + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:+.1f} [{100 * low:+.0f}, {100 * high:+.0f}]"
