"""PassTimes: how long a model's passes take, by their number of tokens."""

from __future__ import annotations

import numpy as np

SIZES = (1, 4, 16)
"""Numbers of tokens whose passes are measured before anything is chosen by them."""


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
