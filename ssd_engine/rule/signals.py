"""Signals: what calls for Union at a place of an answer, beside the match ratio.

A *signal* gives a score in [0, 1] at each place, before the place's token is chosen:

- `refusal_mass`: the draft's probability that it begins a refusal here, its mass on the first tokens of refusals;
- `probe`: a linear probe on the draft's hidden state, from which this place is predicted;
- `kl`: 1 - exp(-KL(p_draft || p_target)).

All three go by the models' distributions as they are: before a temperature, and before a grammar's mask.

With `smoothing` n > 1, what is compared and told is a running mean: the first score, which each further one moves by
1/n of the way. Harmless text has high scores at single places too; harmful text has them at most places.

The rule. A score that is no less than its signal's threshold is an *alarm*. Signals ask for Union at the place of an
alarm and at the `hold - 1` places after it. Where the token that is chosen meanwhile is one that begins a refusal,
Union is asked for to the end of the answer: a refusal that has begun is finished. A place is decided under Union where
the signals ask for it or the match ratio does; the match ratio goes on counting as if there were no signals. A token
that a grammar forces has no score and does not count as a place.

Where an answer continues a given beginning, the beginning's places come first: their scores raise alarms in the same
way, and nothing is chosen there. With `latch` an alarm among them holds to the answer's first place, and there the
draft says what it said where it was surest to break the beginning off, if its probability to do so was at least a half
somewhere. A draft turns back from harmful text where it begins rather than hundreds of tokens later, when all that is
before speaks for going on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ssd_engine.config import Signal, SignalConfig

Scores = Mapping[Signal, float]
"""What the signals that are used give at one place."""


SURE = 0.5
"""Probability of breaking a given beginning off, below which a latched alarm leaves the first place's distribution."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """An alarm from which on signals asked for Union, which they did not before; those that prolong it are none."""

    place: int
    """Tokens of the answer before it; negative in a given beginning, whose last place is -1."""
    signal: Signal
    score: float
    threshold: float


@dataclass(frozen=True)
class Look:
    """What the signals said at one place."""

    scores: Scores
    """Smoothed, where the settings say so."""
    raised: tuple[Signal, ...] = ()
    """Those whose alarm made Union asked for."""

    @property
    def risk(self) -> float:
        """The highest score."""
        return max(self.scores.values(), default=0.0)


@dataclass
class SignalControl:
    """The signals' state in one sequence. At each place `look` comes first, then `leave`."""

    config: SignalConfig
    refusal_ids: Collection[int] = frozenset()
    """Tokens that begin a refusal."""
    _places_left: int = field(default=0, init=False)
    """Places for which the last alarm still holds."""
    _is_refusing: bool = field(default=False, init=False)
    _highest_break_mass: float = field(default=SURE, init=False)
    """At the places of a given beginning; at first what it has to exceed."""
    _means: dict[Signal, float] = field(default_factory=dict, init=False)

    @property
    def asks_for_union(self) -> bool:
        """Whether Union is asked for: after `look` at its place, after `leave` at a forced token that comes next."""
        return self._is_refusing or self._places_left > 0

    def look(self, scores: Scores) -> Look:
        """Take in what the signals give at the next place; a signal that gives nothing there raises no alarm."""
        smoothed = {name: self._mean(name, score) for name, score in scores.items()}
        self._means.update(smoothed)
        alarms = tuple(
            name for name, threshold in self.config.thresholds.items() if smoothed.get(name, -1.0) >= threshold
        )
        look = Look(smoothed, () if self.asks_for_union else alarms)
        if alarms:
            self._places_left = self.config.hold
        return look

    def _mean(self, name: Signal, score: float) -> float:
        """The running mean with one more score, which is the score itself, to the last bit, without smoothing."""
        smoothing = self.config.smoothing
        before = self._means.get(name)
        return score if before is None else before * (1 - 1 / smoothing) + score / smoothing

    def leave(self, token_id: int) -> None:
        """Go past the place, where `token_id` was chosen."""
        self._is_refusing = self._is_refusing or (self._places_left > 0 and token_id in self.refusal_ids)
        self._places_left = max(self._places_left - 1, 0)

    def leave_given(self, break_mass: float) -> bool:
        """Go past a place of a given beginning, where the draft breaks off with the probability `break_mass`.

        Returns:
            Whether `break_mass` is above `SURE` and above that of every place before.
        """
        if not self.config.latch:
            self._places_left = max(self._places_left - 1, 0)
            return False
        is_surest = break_mass > self._highest_break_mass
        self._highest_break_mass = max(break_mass, self._highest_break_mass)
        return is_surest
