"""The round: the draft proposes, the target reads once, the rule decides. This is the engine's only decoding loop."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.draft_phase import DraftPhase, filled, stacked
from ssd_engine.backends.transformers.pass_clock import PassClock
from ssd_engine.backends.transformers.proposal import Proposal
from ssd_engine.backends.transformers.runner import Heard, ModelRunner
from ssd_engine.backends.transformers.sequence import SequenceState
from ssd_engine.bridge.bridge import Bridge
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.drafting.draft_length import shared_lengths
from ssd_engine.drafting.effort import MOST_POSITIONS
from ssd_engine.drafting.lookup import EarlierAnswers, Lookup
from ssd_engine.models.checkpoints import require_signals, shared_vocabulary_size
from ssd_engine.models.memory import plan_positions
from ssd_engine.rule.choice import Choice
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.rule.signal_scores import SignalReader
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import first_positions, verify

if TYPE_CHECKING:
    from ssd_engine.grammars.guide import Guide

_BLOCKS_AT_ONCE = 4
"""Of 32 tokens: so many a processor reads at its full rate."""


class PairDecoder:
    """Decodes sequences with a target and a draft, all of a round in the same passes."""

    def __init__(
        self,
        target: ModelRunner,
        draft: ModelRunner,
        eos_ids: Collection[int],
        signals: DraftSignals,
        bridge: Bridge | None,
    ) -> None:
        """`bridge`: between two vocabularies; None: the models have one."""
        self._target = target
        self._draft = draft
        self._eos_ids = frozenset(eos_ids)
        self._bridge = bridge
        refusal_ids = frozenset(signals.refusal_ids)
        self._refusal_ids = refusal_ids if bridge is None else bridge.firsts(refusal_ids)
        self._signals = SignalReader(signals, draft.device)
        self._clock = PassClock(target, draft)
        self._draft_phase = DraftPhase(draft, self._signals, self._clock, bridge)
        self._earlier = EarlierAnswers()

    @property
    def positions(self) -> int:
        """Most token positions that one sequence can have."""
        return min(self._target.positions, self._draft.positions)

    def open(
        self,
        target_ids: Sequence[int],
        draft_ids: Sequence[int],
        params: GenerationParams,
        config: SSDConfig,
        guide: Guide | None,
        num_given: int,
    ) -> SequenceState | None:
        """Begin an answer to a prompt, given in each model's own tokens; None while the caches have no room for it.

        The last `num_given` of `draft_ids` are a given beginning whose risk signals are to tell.
        """
        verifier = Verifier(params, config, self._eos_ids, self._refusal_ids)
        opening: list[int] = []
        if guide is not None:
            guide.go_back(0)  # it has been here before, where there was no room
            opening = guide.take_forced(params.limit)
        with ExitStack() as undone:
            target = self._target.open(target_ids, params.limit)
            if target is None:
                return None
            undone.callback(self._target.close, target)
            given = num_given if verifier.used_signals else 0
            most_read = params.limit if self._bridge is None else self._bridge.most_read(params.limit)
            draft = self._draft.open(draft_ids, most_read, given) if verifier.drafts else None
            if verifier.drafts and draft is None:
                return None
            if draft is not None:
                undone.callback(self._draft.close, draft)
            is_free = draft is not None and config.num_draft_tokens == "auto"
            lookup = Lookup(target_ids, self._earlier) if is_free else None
            bridge = self._bridge if draft is not None else None
            sequence = SequenceState(target, draft, verifier, guide, opening, lookup, bridge)
            undone.pop_all()
            return sequence

    def close(self, sequence: SequenceState) -> None:
        """Free what a sequence holds."""
        if sequence.lookup is not None:
            sequence.lookup.close()
        self._target.close(sequence.target)
        if sequence.draft is not None:
            self._draft.close(sequence.draft)

    def shut_down(self) -> None:
        """Let go of the models."""
        self._target.shut_down()
        self._draft.shut_down()

    @property
    def parts_at_once(self) -> int:
        """Blocks of prompts that are read together in little more time than fewer."""
        return _BLOCKS_AT_ONCE if self._target.reads_together and self._draft.reads_together else 1

    @torch.inference_mode()
    def read_prompts(self, sequences: Sequence[SequenceState]) -> dict[SequenceState, Exception]:
        """Read a block of each prompt, in each model that has one left; a sequence that is named twice is read on.

        Returns what went wrong with one of them alone.
        """
        try:
            self._read_blocks(sequences)
        except Exception as error:
            named = list(dict.fromkeys(sequences))
            if len(named) == 1:
                return dict.fromkeys(named, error)
            alone = [self.read_prompts([sequence]) for sequence in named]
            return {sequence: failure for failures in alone for sequence, failure in failures.items()}
        return {}

    def _read_blocks(self, sequences: Sequence[SequenceState]) -> None:
        self._target.read_blocks([sequence.target for sequence in sequences])
        drafts = [(sequence, sequence.draft) for sequence in sequences if sequence.draft is not None]
        self._draft.read_blocks([row for _, row in drafts if not row.is_heard])
        for sequence, row in drafts:
            if row.is_heard and (heard := self._draft.read_block(row)) is not None:
                self._look_back(sequence, heard)

    def _look_back(self, sequence: SequenceState, heard: Heard) -> None:
        """Take in what the draft says over tokens that were given."""
        # The target's word on these places would cost a good part of a pass more, so there is no KL.
        used = set(sequence.verifier.used_signals) - {"kl"}
        if not used:
            return
        probe = self._signals.probe_scores(heard.hidden) if "probe" in used and heard.hidden is not None else None
        scores = self._signals.read([used] * len(heard.logits), heard.logits, None, probe)
        latches = sequence.verifier.latches
        masses = self._signals.break_masses(heard.logits) if latches else [0.0] * len(scores)
        surest = sequence.verifier.look_back(scores, masses)
        if surest is not None:
            sequence.breaking_logits = heard.logits[surest].to(torch.float32, copy=True)

    @torch.inference_mode()
    def round(self, sequences: Sequence[SequenceState]) -> list[list[Choice] | Exception]:
        """Advance every sequence by one round; the prompts have been read.

        Returns:
            For each sequence the tokens chosen, or what went wrong with it alone.
        """
        choosing = [sequence for sequence in sequences if not sequence.is_complete]
        outcomes = dict(zip(choosing, self._choose(choosing), strict=True))
        return [
            outcome if isinstance(outcome := outcomes.get(sequence, []), Exception) else sequence.deliver(outcome)
            for sequence in sequences
        ]

    def _choose(self, sequences: Sequence[SequenceState]) -> list[list[Choice] | Exception]:
        """A round of sequences of which each has a token to choose."""
        if not sequences:
            return []
        try:
            return self._round(sequences)
        except Exception as error:
            failures = {sequence: _failure_to_roll_back(sequence) for sequence in sequences}
            if len(sequences) == 1:
                return [error]
            # Nothing was chosen yet. Whoever can go on, goes on; only those that fail by themselves have failed.
            return [failures[sequence] or self._choose([sequence])[0] for sequence in sequences]

    def _round(self, sequences: Sequence[SequenceState]) -> list[list[Choice] | Exception]:
        if any(sequence.lookup is not None for sequence in sequences):
            self._clock.calibrate()
        start, self._clock.seconds = time.perf_counter(), 0.0
        lengths = _most_drafts(sequences)
        proposals = [Proposal(sequence, length) for sequence, length in zip(sequences, lengths, strict=True)]
        draft = self._draft_phase.run(proposals)
        allowed = stacked([each for proposal in proposals for each in proposal.allowed], draft.logits.device)
        target_logits = self._read(proposals, draft.token_ids)
        used = [signals for proposal in proposals for signals in proposal.used_signals]
        both = draft.logits, target_logits
        scores = self._signals.read(used, draft.own_logits, both, draft.probe_scores) if any(used) else ()
        turns = [proposal.turn for proposal in proposals]
        outcomes = verify(turns, target_logits, draft.logits, draft.token_ids, allowed, scores)
        lacking = [] if draft.lacking is None else draft.lacking.tolist()
        accepted = [
            _accepted(proposal, outcome, lacking[first : first + len(proposal.places)])
            for proposal, outcome, first in zip(proposals, outcomes, first_positions(turns), strict=True)
        ]
        selection = time.perf_counter() - start - self._clock.seconds
        for sequence in sequences:
            sequence.timings.selection += selection
        return accepted

    def _read(self, proposals: Sequence[Proposal], drafted: Tensor) -> Tensor:
        """Step 2: M reads what it has not read and all drafts but the last, in one pass.

        Returns:
            [P, V] logits at all positions.
        """
        token_ids: list[int] = []
        counts: list[int] = []
        ends: list[int] = []
        read: list[int] = []
        for proposal, first in zip(proposals, first_positions([each.turn for each in proposals]), strict=True):
            own_ids, own_ends = proposal.to_read()
            ends += [len(token_ids) + end for end in own_ends]
            read += range(first, first + len(proposal.places) - 1)
            token_ids += own_ids
            counts.append(len(own_ids))
        sequences = [proposal.sequence for proposal in proposals]
        with self._clock.timed(self._target, sequences, len(token_ids)):
            ids = filled(token_ids, drafted[read])
            logits = self._target.forward([sequence.target for sequence in sequences], ids, counts)
        if len(ends) < len(token_ids):
            logits = logits[ends]
        return logits.to(drafted.device)


def make_decoder(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    *,
    eos_ids: Collection[int],
    context_length: int | None,
    max_batch_size: int,
    kv_cache_bytes: int | None,
    prefix_cache_bytes: int,
    compile: bool,
    signals: DraftSignals,
    bridge: Bridge | None,
) -> PairDecoder:
    """Set a pair up to decode together; the arguments and errors are `SSDEngine()`'s.

    `bridge`: between two vocabularies; None: the models have one.
    """
    shared = shared_vocabulary_size(target, draft)
    sizes = (shared, shared) if bridge is None else (bridge.target_size, bridge.draft_size)
    require_signals(draft, signals, sizes[1])
    layer = None if signals.probe is None else signals.probe.layer
    runners = (
        ModelRunner(target, sizes[0], compile=compile),
        ModelRunner(draft, sizes[1], compile=compile, layer=layer),
    )
    if bridge is not None:
        bridge.move(runners[1].device)
    bytes_per_position = sum(runner.bytes_per_position for runner in runners)
    positions = plan_positions(bytes_per_position, max_batch_size, context_length, runners[0].device, kv_cache_bytes)
    for runner in runners:
        runner.allocate(positions, prefix_cache_bytes)
        runner.capture_graphs()
    return PairDecoder(*runners, eos_ids, signals, bridge)


def _most_drafts(sequences: Sequence[SequenceState]) -> list[int]:
    """Most tokens that each sequence drafts in a round: no more than it may still have, 0 where nothing is drafted."""
    settings = [
        sequence.verifier.config.num_draft_tokens if sequence.draft is not None else 0 for sequence in sequences
    ]
    # Those that choose for themselves want what they chose last: others are not to make them wait for more passes.
    wanted = [
        sequence.num_draft_passes if setting == "auto" else setting
        for setting, sequence in zip(settings, sequences, strict=True)
    ]
    shared = shared_lengths(wanted)
    most = [MOST_POSITIONS if setting == "auto" else length for setting, length in zip(settings, shared, strict=True)]
    return [min(length, sequence.num_remaining) for length, sequence in zip(most, sequences, strict=True)]


def _accepted(
    proposal: Proposal, outcome: list[Choice] | Exception, lacking: Sequence[float]
) -> list[Choice] | Exception:
    """What a round added to an answer; from here on others have gone on, so whatever goes wrong is its own."""
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return proposal.accept(outcome, lacking)
    except Exception as error:
        _failure_to_roll_back(proposal.sequence)  # the first error is what is told
        return error


def _failure_to_roll_back(sequence: SequenceState) -> Exception | None:
    """Undo what a round read of a sequence; where even that fails, it fails for this sequence alone."""
    try:
        sequence.roll_back()
    except Exception as error:
        return error
    return None
