"""Lookup: guesses at what a draft will say, from the prompt, the answer so far, and earlier answers."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from ssd_engine.drafting.match_rates import MatchRate
from ssd_engine.drafting.token_index import TokenIndex

MOST_GUESSES = 15
"""Tokens that are guessed at once."""
_MOST_TOKENS = 8192
"""Of earlier answers that are kept, within a factor of two."""
_BOUNDS = (3, 5, 9)
"""Between the classes of the length of the run that a guess goes by."""
_USUAL = (0.35, 0.55, 0.7, 0.85)


@dataclass(frozen=True)
class Guess:
    """Tokens that may come next."""

    token_ids: Sequence[int]
    rate: MatchRate
    """Of guessed tokens that the draft says too, for guesses of this kind."""


class EarlierAnswers:
    """The latest answers of an engine, and how often guesses were right in it."""

    def __init__(self) -> None:
        self._older = TokenIndex()
        self._newer = TokenIndex()
        self._rates = [MatchRate(rate) for rate in _USUAL]

    def keep(self, token_ids: Sequence[int]) -> None:
        """Add an answer; the oldest ones are forgotten."""
        if len(self._newer) > _MOST_TOKENS:
            self._older, self._newer = self._newer, TokenIndex()
        self._newer.extend(token_ids)
        self._newer.end_text()

    def find(self, run: Sequence[int], most: int) -> tuple[int, list[int]]:
        """`TokenIndex.find` in all of them."""
        return max((index.find(run, most) for index in (self._newer, self._older)), key=lambda found: found[0])

    def rate_of(self, run_length: int) -> MatchRate:
        """Of guesses that go by so many tokens."""
        return self._rates[bisect(_BOUNDS, run_length)]


class Lookup:
    """Guesses for one sequence."""

    def __init__(self, prompt_ids: Sequence[int], earlier: EarlierAnswers) -> None:
        self._own = TokenIndex(prompt_ids)
        self._latest = list(prompt_ids)
        self._num_prompt_tokens = len(prompt_ids)
        self._earlier = earlier

    def extend(self, token_ids: Sequence[int]) -> None:
        """Let tokens of the answer stand."""
        self._own.extend(token_ids)
        self._latest += token_ids

    def guess(self, proposed: Sequence[int]) -> Guess | None:
        """What may come after the answer so far and the tokens `proposed` for it; None where nothing is like it."""
        run = [*self._latest[-32:], *proposed]
        found = max((index.find(run, MOST_GUESSES) for index in (self._own, self._earlier)), key=lambda found: found[0])
        return Guess(found[1], self._earlier.rate_of(found[0])) if found[0] else None

    def close(self) -> None:
        """Keep the answer for later ones."""
        self._earlier.keep(self._latest[self._num_prompt_tokens :])
