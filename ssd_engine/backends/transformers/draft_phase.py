"""Step 1 of a round: the draft says its own token at each position, from its own prompt and all output so far.

It drafts token by token, as published, or reads guesses of what it will say and keeps those that it says too: as many
positions as guesses were right come out of one pass. The proposed tokens are the draft's own either way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ssd_engine.backends.transformers.pass_clock import PassClock
from ssd_engine.backends.transformers.proposal import DRAFTED, Proposal
from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.drafting.effort import Effort
from ssd_engine.rule.signal_scores import SignalReader
from ssd_engine.rule.verify import first_positions, propose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ssd_engine.bridge.bridge import Bridge
    from ssd_engine.bridge.crossing import Crossing


@dataclass(frozen=True, kw_only=True)
class Drafted:
    """What the draft says at P positions."""

    logits: Tensor
    """[P, V] float32 of the target's tokens; zeros where nothing is drafted."""
    own_logits: Tensor
    """[P, V_m] float32 of the draft's own; the same where it has the target's vocabulary."""
    token_ids: Tensor
    """[P] int64 its own tokens; -1 where nothing is drafted."""
    lacking: Tensor | None
    """[P] probability of tokens that the target lacks; None where both have one vocabulary."""
    probe_scores: Tensor | None
    """[P] scores of the probe; zeros where nothing is drafted. None: no sequence uses it."""

    def at(self, rows: Sequence[int]) -> Drafted:
        """Some of the positions."""
        scores = None if self.probe_scores is None else self.probe_scores[rows]
        lacking = None if self.lacking is None else self.lacking[rows]
        return Drafted(
            logits=self.logits[rows],
            own_logits=self.own_logits[rows],
            token_ids=self.token_ids[rows],
            lacking=lacking,
            probe_scores=scores,
        )


class DraftPhase:
    """Drafts with one model."""

    def __init__(self, draft: ModelRunner, signals: SignalReader, clock: PassClock, bridge: Bridge | None) -> None:
        self._draft = draft
        self._bridge = bridge
        self._signals = signals
        self._clock = clock

    def run(self, proposals: Sequence[Proposal]) -> Drafted:
        """Draft all of a round's tokens; the positions are those of all `proposals`, one after the other."""
        device = self._draft.device
        num_read = sum(len(proposal.sequence.target.unread) - 1 for proposal in proposals)
        effort = Effort(self._clock.draft_times, self._clock.target_times, num_read)
        latest: dict[Proposal, Tensor] = {}
        steps: list[tuple[list[tuple[Proposal, int]], Drafted]] = []
        while drafting := _next_to_draft(proposals, effort):
            steps.append(self._step(drafting, latest))
        for proposal in proposals:
            proposal.stop_drafting()
        firsts = dict(zip(proposals, first_positions([proposal.turn for proposal in proposals]), strict=True))
        num_positions = sum(len(proposal.places) for proposal in proposals)
        token_ids = torch.full((num_positions,), -1, device=device)
        own_logits = torch.zeros(num_positions, self._draft.vocab_size, device=device)
        logits = own_logits if self._bridge is None else own_logits.new_zeros(num_positions, self._bridge.target_size)
        scores = logits.new_zeros(num_positions)
        lacking = None if self._bridge is None else logits.new_zeros(num_positions)
        for positions, drafted in steps:
            at = torch.tensor([firsts[proposal] + position for proposal, position in positions], device=device)
            logits[at], token_ids[at] = drafted.logits, drafted.token_ids
            if lacking is not None and drafted.lacking is not None:
                own_logits[at], lacking[at] = drafted.own_logits, drafted.lacking
            if drafted.probe_scores is not None:
                scores[at] = drafted.probe_scores
        return Drafted(logits=logits, own_logits=own_logits, token_ids=token_ids, lacking=lacking, probe_scores=scores)

    def _step(
        self, proposals: Sequence[Proposal], latest: dict[Proposal, Tensor]
    ) -> tuple[list[tuple[Proposal, int]], Drafted]:
        """One pass, after which each of `proposals` has a token more, or several; which positions they are at.

        `latest` are the tokens, [] each, that were drafted last.
        """
        read: list[int] = []
        ends: dict[Proposal, list[int]] = {}
        counts: list[int] = []
        positions: list[tuple[Proposal, int]] = []
        for proposal in proposals:
            unread, ends[proposal] = proposal.to_draft()
            counts.append(len(unread))
            read += unread
            positions += [(proposal, position) for position in proposal.step_positions]
        known = [latest[proposal] for proposal in proposals if proposal in latest]
        token_ids = filled(read, torch.stack(known)) if known else torch.tensor(read)
        said = self._own_tokens(positions, *self._read(proposals, token_ids, counts, ends))
        needs_ids = any(proposal.needs_ids for proposal in proposals)
        own_ids: list[int | None] = said.token_ids.tolist() if needs_ids else [None] * len(positions)
        chooses = any(proposal.sequence.lookup is not None for proposal in proposals)
        probabilities = _probabilities(said).tolist() if chooses else []
        kept: list[int] = []
        first = 0
        for proposal, count in zip(proposals, counts, strict=True):
            last = first + len(ends[proposal])
            number = proposal.settle(own_ids[first:last], probabilities[first:last])
            kept += range(first, first + number)
            latest[proposal] = said.token_ids[first + number - 1]
            if (row := proposal.sequence.draft) is not None:
                row.length -= count - 1 - ends[proposal][number - 1]  # what was read of wrong guesses
            first = last
        return [positions[index] for index in kept], said if len(kept) == len(positions) else said.at(kept)

    def _read(
        self, proposals: Sequence[Proposal], token_ids: Tensor, counts: Sequence[int], ends: dict[Proposal, list[int]]
    ) -> tuple[Tensor, Tensor | None]:
        """[P, V] float32 logits at the ends of all proposals, and [P, H] of the draft's layer, if it has one."""
        rows = [row for proposal in proposals if (row := proposal.sequence.draft) is not None]
        with self._clock.timed(self._draft, [proposal.sequence for proposal in proposals], len(token_ids)):
            logits, hidden = self._draft.forward(rows, token_ids, counts), self._draft.hidden
        firsts = np.cumsum([0, *counts])[:-1].tolist()
        at = [first + end for first, proposal in zip(firsts, proposals, strict=True) for end in ends[proposal]]
        if len(at) < len(token_ids):
            logits, hidden = logits[at], None if hidden is None else hidden[at]
        return logits.to(torch.float32, copy=True), hidden

    def _own_tokens(self, positions: Sequence[tuple[Proposal, int]], logits: Tensor, hidden: Tensor | None) -> Drafted:
        """The draft's own token at each position."""
        for row, (proposal, position) in enumerate(positions):
            if (latched := proposal.latched(position)) is not None:
                logits[row] = latched
        own_logits, lacking = logits, None
        if self._bridge is not None:
            logits, lacking = _carried(self._bridge, logits, [proposal for proposal, _ in positions])
        verifiers = [proposal.verifier for proposal, _ in positions]
        allowed = stacked([proposal.allowed[position] for proposal, position in positions], logits.device)
        places = [proposal.places[position] for proposal, position in positions]
        uses_probe = hidden is not None and any("probe" in verifier.used_signals for verifier in verifiers)
        scores = self._signals.probe_scores(hidden) if hidden is not None and uses_probe else None
        token_ids = propose(logits, verifiers, places, allowed)
        return Drafted(logits=logits, own_logits=own_logits, token_ids=token_ids, lacking=lacking, probe_scores=scores)


def _carried(bridge: Bridge, logits: Tensor, proposals: Sequence[Proposal]) -> tuple[Tensor, Tensor]:
    """[P, V_M] float32 logits of the target's tokens, and [P] how much probability falls on those that it lacks.

    Args:
        bridge: the way between the vocabularies.
        logits: [P, V_m] float32 the draft's.
        proposals: those of the P positions, one after the other.
    """
    p = logits.softmax(-1)
    crossings: list[Crossing] = []
    for proposal, positions in itertools.groupby(proposals):
        first = len(crossings)
        crossings += proposal.cross(p[first : first + len(list(positions))])
    # No logit is -inf: that is the mark of tokens that a grammar forbids.
    logits = bridge.carry(p, crossings).clamp_min(torch.finfo(p.dtype).tiny).log()
    return logits, bridge.lacking_mass(p)


def _next_to_draft(proposals: Sequence[Proposal], effort: Effort) -> list[Proposal]:
    """Those that take part in the draft's next pass, with what they guess."""
    able = [proposal for proposal in proposals if proposal.is_drafting]
    if all(proposal.sequence.lookup is None for proposal in able):
        return able
    steps = [proposal.next_step() for proposal in able]
    numbers = effort.choose(steps)
    effort.record(steps, numbers)
    drafting = [(proposal, number) for proposal, number in zip(able, numbers, strict=True) if number is not None]
    for proposal, number in drafting:
        proposal.guess(number)
    return [proposal for proposal, _ in drafting]


def _probabilities(said: Drafted) -> Tensor:
    """[P] the draft's of its own tokens, at temperature 1 and without a mask."""
    chosen = said.logits.gather(-1, said.token_ids[:, None])[:, 0]
    return (chosen - said.logits.logsumexp(-1)).exp()


def filled(token_ids: Sequence[int], drafted: Tensor) -> Tensor:
    """[T] int64 token ids, those that stand for drafted ones replaced by `drafted`, one after the other."""
    ids = torch.tensor(token_ids, dtype=torch.int64, device=drafted.device)
    return ids.masked_scatter(ids == DRAFTED, drafted)


def stacked(allowed: Sequence[NDArray[np.bool_] | None], device: torch.device) -> Tensor | None:
    """[P, V] bool of what grammars allow at P positions; None where there is no grammar at any."""
    known = next((each for each in allowed if each is not None), None)
    if known is None:
        return None
    everything = np.ones_like(known)
    return torch.from_numpy(np.stack([everything if each is None else each for each in allowed])).to(device)
