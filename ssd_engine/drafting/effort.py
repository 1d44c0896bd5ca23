"""Effort: whether one more pass of the draft pays in a round, by expected tokens and measured times.

A round whose n positions are each reached where all drafts before match brings the sum of these chances in tokens: with
match rates r₁, r₂, … it is 1 + r₁ + r₁r₂ + …. It takes the draft's passes and one of the target over all positions of
all its sequences. Drafting goes on as long as that raises the tokens a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_POSITIONS = 16
"""Of one sequence in a round, where the engine chooses."""
_GUESSES_TRIED = (0, 1, 2, 3, 5, 7, 11, 15)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one sequence could do in the draft's next pass."""

    chance: float
    """That all its drafts so far match."""
    match_rate: float
    """Of the drafts to come."""
    guess_rate: float
    """Of guessed tokens that the draft will say too."""
    num_read: int
    """Tokens that the draft reads before the guesses."""
    num_guesses: int
    """How many tokens are guessed."""
    is_due: bool
    """Whether it takes part whatever it costs."""

    def gain(self, num_guesses: int) -> float:
        """Tokens that it is expected to add to the round."""
        good = self.guess_rate * self.match_rate
        return self.chance * sum(good**i for i in range(num_guesses + 1))


class Effort:
    """Expected tokens and seconds of a round under way."""

    def __init__(
        self, draft_seconds: Callable[[int], float], target_seconds: Callable[[int], float], num_read: int
    ) -> None:
        """`draft_seconds`, `target_seconds`: of a pass by its tokens, of which the target reads `num_read` at least."""
        self._draft_seconds = draft_seconds
        self._target_seconds = target_seconds
        self._tokens = 0.0
        self._seconds = 0.0
        self._num_read = num_read

    def choose(self, steps: Sequence[Step]) -> list[int | None]:
        """For each of `steps`, made in the draft's next pass together, how many guesses it reads; None: it rests."""
        wanted = [self._best_num_guesses(step) for step in steps]
        ranked = sorted(range(len(steps)), key=lambda i: (steps[i].is_due, steps[i].gain(wanted[i])), reverse=True)
        taking: list[int] = []
        best, num_best = self._speed(0.0, 0, 0), 0
        tokens, num_read, num_positions = 0.0, 0, 0
        for i in ranked:
            taking.append(i)
            tokens += steps[i].gain(wanted[i])
            num_read += steps[i].num_read + wanted[i]
            num_positions += 1 + wanted[i]
            speed = self._speed(tokens, num_read, num_positions)
            if steps[i].is_due or speed > best:
                best, num_best = speed, len(taking)
        chosen = set(taking[:num_best])
        return [number if i in chosen else None for i, number in enumerate(wanted)]

    def record(self, steps: Sequence[Step], num_guesses: Sequence[int | None]) -> None:
        """Count a pass in."""
        made = [(step, number) for step, number in zip(steps, num_guesses, strict=True) if number is not None]
        self._tokens += sum(step.gain(number) for step, number in made)
        self._seconds += self._draft_seconds(sum(step.num_read + number for step, number in made))
        self._num_read += sum(1 + number for _, number in made)

    def _best_num_guesses(self, step: Step) -> int:
        tried = [number for number in _GUESSES_TRIED if number <= step.num_guesses]
        return max(tried, key=lambda number: self._speed(step.gain(number), step.num_read + number, 1 + number))

    def _speed(self, tokens: float, num_read: int, num_positions: int) -> float:
        """Expected tokens a second of the round with one more pass, which reads `num_read` tokens; 0: without it."""
        seconds = self._seconds + self._target_seconds(max(self._num_read + num_positions, 1))
        return (self._tokens + tokens) / (seconds + (self._draft_seconds(num_read) if num_read else 0.0))
