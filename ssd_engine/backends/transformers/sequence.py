"""SequenceState: one answer in the making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ssd_engine.answers.result import Timings
from ssd_engine.bridge.crossing import BOUNDARY
from ssd_engine.drafting.lookup import Lookup
from ssd_engine.drafting.match_rates import MatchRates
from ssd_engine.rule.choice import Choice
from ssd_engine.rule.signals import Look
from ssd_engine.rule.verifier import Verifier

if TYPE_CHECKING:
    from torch import Tensor

    from ssd_engine.backends.transformers.runner import Row
    from ssd_engine.bridge.bridge import Bridge
    from ssd_engine.grammars.guide import Guide


class SequenceState:
    """One answer in the making: its rows in both models, its rule, and where it stands in its grammar."""

    def __init__(
        self,
        target: Row,
        draft: Row | None,
        verifier: Verifier,
        guide: Guide | None,
        opening: list[int],
        lookup: Lookup | None,
        bridge: Bridge | None,
    ) -> None:
        self.target = target
        self.draft = draft
        self.verifier = verifier
        self.guide = guide
        self.timings = Timings()
        self.match_rates = MatchRates()
        self.lookup = lookup
        """Where tokens are guessed: there the number of drafts is the engine's choice."""
        self.num_tokens = len(opening)
        """Tokens of the answer that stand."""
        self.num_draft_passes = 1
        """In which its latest round drafted, or which its first one will need at least."""
        self.num_drafted = 0
        """Tokens that were drafted, in rounds that are done."""
        self.breaking_logits: Tensor | None = None
        """[V] the draft's, where it is surest to break a given beginning off."""
        self.bridge = bridge
        """Where the draft has a vocabulary of its own; what `crossing` says is of the place that comes next."""
        self.crossing = BOUNDARY
        self._opening = opening
        target.begin(opening)
        if draft is not None:
            draft.begin(self.as_draft_reads(opening))
        if lookup is not None:
            lookup.extend(opening)
        if guide is not None:
            guide.commit()

    def as_draft_reads(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The draft's tokens for some of the answer's."""
        return token_ids if self.bridge is None else self.bridge.readings(token_ids)

    @property
    def rows(self) -> list[Row]:
        """What each model that takes part holds of the sequence."""
        return [row for row in (self.target, self.draft) if row is not None]

    @property
    def cached_prompt_tokens(self) -> int:
        """Tokens of the target's prompt that were reused."""
        return self.target.cached_prompt_tokens

    @property
    def num_unread_parts(self) -> int:
        """Blocks of the prompt that are still to be read, in the model that has most of them left."""
        return max(row.num_unread_blocks for row in self.rows)

    @property
    def num_remaining(self) -> int:
        """Tokens that the answer may still have."""
        return self.verifier.params.limit - self.num_tokens

    @property
    def is_complete(self) -> bool:
        """Whether a grammar has forced the answer to its end."""
        return self.guide is not None and (self.guide.has_ended or self.num_remaining == 0)

    def deliver(self, chosen: list[Choice]) -> list[Choice]:
        """A round's tokens, led by those that a grammar forced before the first round."""
        led, self._opening = [*self.verifier.opening(self._opening), *chosen], []
        if self.bridge is not None:
            led = [replace(choice, bridge_mass=0.0) if choice.is_forced else choice for choice in led]
        return led

    def take_beginning(self) -> Sequence[Look]:
        """What the signals said over a given beginning; nothing at later calls."""
        looks, self.verifier.beginning = self.verifier.beginning, []
        return looks

    def roll_back(self) -> None:
        """Undo what a round read but did not finish."""
        for row in self.rows:
            row.roll_back()
        if self.guide is not None:
            self.guide.go_back(self.num_tokens)

    def accept(
        self, choices: Sequence[Choice], probabilities: Sequence[float], num_drafted: int, num_forced: int
    ) -> None:
        """Let tokens stand in both models in place of what was drafted; the last `num_forced` nobody chose.

        `probabilities` are the draft's own, of what was drafted at the places where there was a choice, if it is known.
        """
        token_ids = [choice.token_id for choice in choices]
        unread = token_ids[len(token_ids) - 1 - num_forced :]
        self.target.accept(token_ids, len(unread))
        if self.draft is not None:
            self.draft.accept(self.as_draft_reads(token_ids), len(self.as_draft_reads(unread)))
        if self.lookup is not None:
            self.lookup.extend(token_ids)
        self.num_tokens += len(choices)
        self.num_drafted += num_drafted
        chosen = [choice for choice in choices if not choice.is_forced]
        for choice, probability in zip(chosen, probabilities, strict=False):
            self.match_rates.record(probability, matched=choice.matched)
