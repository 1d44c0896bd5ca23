"""Proposal: what is proposed for one sequence in a round."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ssd_engine.backends.transformers.sequence import SequenceState
from ssd_engine.bridge.crossing import BOUNDARY, Crossing
from ssd_engine.config import Signal
from ssd_engine.drafting.effort import Step
from ssd_engine.drafting.lookup import Guess
from ssd_engine.errors import SSDError
from ssd_engine.rule.choice import NOT_NUMBERS, Choice
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

DRAFTED = -1
"""Stands in lists of token ids for a drafted one, which only the device knows."""


class Proposal:
    """What is proposed for one sequence in a round: drafted tokens, each with what a grammar forces after it.

    Where the target decodes alone nothing is drafted, and one position is to be chosen.

    Guesses are tokens that the draft has not said yet. It reads them as if it had; `settle` keeps those that it says
    too, so that in the end every proposed token is the draft's own.
    """

    def __init__(self, sequence: SequenceState, num_drafts: int) -> None:
        self.sequence = sequence
        self.most = max(num_drafts, 1)
        self.places = [sequence.num_tokens]
        """Of each position, the tokens of the answer before it."""
        self.forced: list[list[int]] = []
        """After each drafted token."""
        self.allowed: list[NDArray[np.bool_] | None] = []
        self.num_steps = 0
        """Passes of the draft so far."""
        self.probabilities: list[float] = []
        """The draft's, of each drafted token, where the number of drafts is chosen."""
        self.chance = 1.0
        """That all drafted tokens match."""
        self._crossings: list[Crossing] = []
        """Of each place at which the draft has said what it says, where it has a vocabulary of its own."""
        self._p: list[Tensor] = []
        """[V_m] what it says there."""
        self._drafted: list[int] = []
        """The tokens drafted, where they are known."""
        self._guess: Guess | None = None
        self._proposed: list[int] = []
        """Tokens after the answer so far, the forced ones included, where tokens are guessed."""
        self._guessed: list[int] = []
        """Of the step under way."""
        self._look()

    @property
    def verifier(self) -> Verifier:
        """The rule of the sequence."""
        return self.sequence.verifier

    @property
    def used_signals(self) -> list[Collection[Signal]]:
        """Of each position, the signals that are used there."""
        return [self.verifier.used_signals] * len(self.places)

    @property
    def turn(self) -> Turn:
        """This sequence's part in the rule."""
        return Turn(self.verifier, self.places)

    @property
    def is_drafting(self) -> bool:
        """Whether another token can be drafted."""
        return self.sequence.draft is not None and len(self.forced) < len(self.places)

    @property
    def needs_ids(self) -> bool:
        """Whether drafted tokens have to be known on the host."""
        sequence = self.sequence
        return sequence.guide is not None or sequence.lookup is not None or sequence.bridge is not None

    @property
    def step_positions(self) -> range:
        """The positions at which the step under way drafts."""
        return range(len(self.forced) - len(self._guessed), len(self.places))

    def latched(self, position: int) -> Tensor | None:
        """[V] what the draft says at the answer's first place, where an alarm in a given beginning is latched.

        A grammar that forbids the likeliest of it wants something else there.
        """
        logits, allowed = self.sequence.breaking_logits, self.allowed[position]
        if logits is None or self.places[position] > 0 or not self.verifier.is_latched:
            return None
        if allowed is None:
            return logits
        likeliest = {int(logits.argmax())}
        bridge = self.sequence.bridge
        wanted = likeliest if bridge is None else bridge.firsts(likeliest)
        return logits if any(allowed[token_id] for token_id in wanted) else None

    def cross(self, p: Tensor) -> list[Crossing]:
        """What may be under way at each position of the step, where the draft says `p`, [P, V_m]."""
        assert self.sequence.bridge is not None
        for row in p:
            place = len(self._crossings)
            if place == 0:
                crossing = self.sequence.crossing
            elif self.forced[place - 1]:
                crossing = BOUNDARY
            else:
                crossing = self.sequence.bridge.go_on(self._crossings[-1], self._p[-1], self._drafted[place - 1])
            self._crossings.append(crossing)
            self._p.append(row)
        return self._crossings[len(self._crossings) - len(p) :]

    def _crossing_after(self, chosen: Sequence[Choice], num_forced: int) -> Crossing:
        """What may be under way after a round's last token and what a grammar forced after it."""
        last = len(chosen) - 1
        if self.sequence.bridge is None or num_forced or last >= len(self._p):
            return BOUNDARY
        return self.sequence.bridge.go_on(self._crossings[last], self._p[last], chosen[last].token_id)

    def next_step(self) -> Step:
        """What could be done next."""
        lookup, rates = self.sequence.lookup, self.sequence.match_rates
        self._guess = None if lookup is None else lookup.guess(self._proposed)
        room = self.most - len(self.places)
        return Step(
            chance=self.chance,
            match_rate=rates.mean,
            guess_rate=self._guess.rate.value if self._guess else 0.0,
            num_read=len(self._unread),
            num_guesses=min(len(self._guess.token_ids), room) if self._guess else 0,
            is_due=lookup is None or not self.forced,
        )

    def guess(self, num_guesses: int) -> None:
        """Propose some guessed tokens, as far as a grammar allows them, for the step that comes."""
        token_ids = self._guess.token_ids if self._guess else ()
        for token_id in itertools.islice(token_ids, num_guesses):
            allowed = self.allowed[-1]
            if not self.is_drafting or (allowed is not None and not allowed[token_id]):
                break
            self._guessed.append(token_id)
            self.add(token_id)
            if self.forced[-1]:
                break  # what would come next is no guess

    @property
    def _unread(self) -> list[int]:
        """What the draft has not read of what is proposed, guesses of the step under way left out."""
        num_drafted = len(self.forced) - len(self._guessed)
        if num_drafted == 0:
            return [] if self.sequence.draft is None else self.sequence.draft.unread
        forced = self.forced[num_drafted - 1]
        if self.sequence.bridge is None:
            return [DRAFTED, *forced]
        return self.sequence.bridge.readings([self._drafted[num_drafted - 1], *forced])

    def to_draft(self) -> tuple[list[int], list[int]]:
        """What the draft reads in this step, and at which of these tokens it says what comes at each position."""
        token_ids = list(self._unread)
        ends = [len(token_ids) - 1]
        first = len(self.forced) - len(self._guessed)
        for token_id, forced in zip(self._guessed, self.forced[first:], strict=True):
            token_ids += self.sequence.as_draft_reads([token_id, *forced])
            ends.append(len(token_ids) - 1)
        return token_ids, ends[: len(self.places) - first]

    def settle(self, token_ids: Sequence[int | None], probabilities: Sequence[float]) -> int:
        """Take in what the draft says at the positions of the step under way, as far as the guesses before are right.

        Args:
            token_ids: the draft's own.
            probabilities: the draft's, of these; empty where nobody needs to know them.

        Returns:
            At how many of these positions its word counts.
        """
        self.num_steps += 1
        guessed, self._guessed = self._guessed, []
        first = len(self.forced) - len(guessed)
        right = 0
        for guess, token_id in zip(guessed, token_ids, strict=False):
            if self._guess is not None:
                self._guess.rate.record(matched=guess == token_id)
            if guess != token_id:
                break
            right += 1
        if right < len(guessed):
            del self.places[first + right + 1 :], self.allowed[first + right + 1 :], self.forced[first + right :]
            del self._drafted[first + right :]
            if self.sequence.guide is not None:
                self.sequence.guide.go_back(self.places[-1])
        own = token_ids[right : right + 1]
        for token_id in own:  # none where the last guess has ended the draft
            self.add(token_id)
        if self.sequence.lookup is not None:
            said = [token_id for token_id in token_ids[: right + 1] if token_id is not None]
            for token_id, forced in zip(said, self.forced[first:], strict=True):
                self._proposed += [token_id, *forced]
        for probability in probabilities[: right + len(own)]:
            self.probabilities.append(probability)
            self.chance *= self.sequence.match_rates.of(probability)
        number = right + len(own)
        del self._crossings[first + number :], self._p[first + number :]
        return number

    def stop_drafting(self) -> None:
        """Leave the position out for which nothing was drafted."""
        if self.is_drafting:
            del self.places[-1], self.allowed[-1]

    def to_read(self) -> tuple[list[int], list[int]]:
        """What the target reads, and at which of these tokens it says what comes at each position."""
        token_ids = list(self.sequence.target.unread)
        ends = [len(token_ids) - 1]
        for forced in self.forced[: len(self.places) - 1]:
            token_ids += [DRAFTED, *forced]
            ends.append(len(token_ids) - 1)
        return token_ids, ends

    def add(self, token_id: int | None) -> None:
        """Take in a drafted token; its id is needed where `needs_ids` alone."""
        guide = self.sequence.guide
        if token_id is not None:
            self._drafted.append(token_id)
        place = self.places[-1] + 1
        remaining = self.verifier.params.limit - place
        forced: list[int] = []
        if guide is not None and token_id is not None:
            if not guide.allowed[token_id]:
                raise SSDError(NOT_NUMBERS)
            guide.advance([token_id])
            forced = guide.take_forced(remaining)
        self.forced.append(forced)
        is_last = remaining <= len(forced) or (guide is not None and guide.has_ended)
        if len(self.places) < self.most and not is_last:
            self.places.append(place + len(forced))
            self._look()

    def accept(self, chosen: Sequence[Choice], lacking: Sequence[float] = ()) -> list[Choice]:
        """Take the chosen tokens into the answer, with those that a grammar forces after each; returns all of them.

        `lacking`: of each position, the draft's probability of tokens that the target lacks; unused without a bridge.
        """
        if self.sequence.bridge is not None:
            chosen = [replace(choice, bridge_mass=mass) for choice, mass in zip(chosen, lacking, strict=False)]
        sequence, guide = self.sequence, self.sequence.guide
        standing: list[Choice] = []
        for choice, forced in zip(chosen[:-1], self.forced, strict=False):
            standing += [choice, *self.verifier.forced(forced, choice)]
        last, forced = chosen[-1], []
        if guide is not None:
            # What was proposed at this place may have been another token.
            guide.go_back(sequence.num_tokens + len(standing))
            guide.advance([last.token_id])
            forced = guide.take_forced(sequence.num_remaining - len(standing) - 1)
            guide.commit()
        standing += [last, *self.verifier.forced(forced, last)]
        sequence.crossing = self._crossing_after(chosen, len(forced))
        sequence.num_draft_passes = max(self.num_steps, 1)
        sequence.accept(standing, self.probabilities, len(self.forced), len(forced))
        return standing

    def _look(self) -> None:
        """Note what the grammar allows at the last of the places."""
        guide = self.sequence.guide
        self.allowed.append(None if guide is None else guide.allowed)
