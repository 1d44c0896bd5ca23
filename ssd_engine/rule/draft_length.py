"""How many tokens to draft: the length whose expected speed is best, from measured pass times and match rates.

With acceptance a, a round of L drafts gives E = (1 - a^L) / (1 - a) tokens and takes L t_m + t_M(L): the bound of the
algorithm, here for all sequences of a round together. The length changes no token of any answer, only the time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LONGEST = 8
"""Most tokens that are drafted when the length is chosen."""
_PRIOR_WEIGHT = 10.0
_FORGETTING = 0.98


def shared_lengths(wanted: Sequence[int]) -> list[int]:
    """What sequences that share a round draft, of the tokens that each of them wants to (0: none is drafted).

    In company nobody drafts more than `LONGEST`, nor more than the lower median of what is wanted by those that draft:
    so one sequence's long drafts do not make the others wait. No answer depends on it.
    """
    drafting = [length for length in wanted if length]
    if len(wanted) < 2 or not drafting:
        return list(wanted)
    most = min(statistics.median_low(drafting), LONGEST)
    return [min(length, most) for length in wanted]


class PassTimes:
    """Seconds of a model's pass, by its number of tokens: running means, interpolated between the sizes seen."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no pass was timed yet."""
        return not self._seconds

    def record(self, tokens: int, seconds: float) -> None:
        """Enter one pass."""
        known = self._seconds.get(tokens, seconds)
        self._seconds[tokens] = known + 0.2 * (seconds - known)

    def __call__(self, tokens: int) -> float:
        """Expected seconds of a pass over `tokens` tokens; at least one size must have been seen."""
        sizes = sorted(self._seconds)
        inside = float(np.interp(tokens, sizes, [self._seconds[size] for size in sizes]))
        # Past the largest size seen, time grows with the tokens: that is where arithmetic binds.
        return inside * max(tokens / sizes[-1], 1.0)


@dataclass
class Acceptance:
    """Running share of drafts that stand, starting from what is usual."""

    matched: float = 0.8 * _PRIOR_WEIGHT
    proposed: float = _PRIOR_WEIGHT

    @property
    def rate(self) -> float:
        """Share of drafts that matched."""
        return self.matched / self.proposed

    def record(self, *, matched: bool) -> None:
        """Enter one chosen token; older ones count for less and less."""
        self.matched = _FORGETTING * self.matched + matched
        self.proposed = _FORGETTING * self.proposed + 1


def tokens_a_round(rate: float, num_drafts: int) -> float:
    """E: expected tokens of a round of `num_drafts` drafts, each accepted with probability `rate`."""
    return sum(rate**i for i in range(num_drafts))


def best_length(rates: Sequence[float], draft_pass: Callable[[int], float], target_pass: Callable[[int], float]) -> int:
    """The L, from 1 to `LONGEST`, with the most expected tokens a second for sequences of these acceptance `rates`.

    Args:
        rates: one for each of R sequences that decode together.
        draft_pass, target_pass: seconds of a pass by its number of tokens.
    """
    step = draft_pass(len(rates))

    def speed(length: int) -> float:
        tokens = sum(tokens_a_round(rate, length) for rate in rates)
        return tokens / (length * step + target_pass(length * len(rates)))

    return max(range(1, LONGEST + 1), key=speed)
