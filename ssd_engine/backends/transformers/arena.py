"""Arena: who holds which positions of a preallocated cache."""

from __future__ import annotations


class Arena:
    """Hands out contiguous stretches of `size` positions, each to one sequence; the first gap that is long enough."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken: list[range] = []

    def take(self, length: int) -> range | None:
        """A free stretch of `length` positions; None where there is no room now."""
        start = 0
        for index, taken in enumerate([*self._taken, range(self.size, self.size)]):
            if taken.start - start >= length:
                stretch = range(start, start + length)
                self._taken.insert(index, stretch)
                return stretch
            start = taken.stop
        return None

    def give_back(self, stretch: range) -> None:
        """Free a stretch that `take` gave."""
        self._taken.remove(stretch)
