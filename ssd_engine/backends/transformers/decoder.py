"""The round: the draft proposes, the target reads once, the rule decides. This is the engine's only decoding loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.backends.transformers.sequence import DRAFTED, Proposal, SequenceState
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.models.checkpoints import require_signals, shared_vocabulary_size
from ssd_engine.models.memory import plan_positions
from ssd_engine.rule.choice import Choice
from ssd_engine.rule.draft_length import LONGEST, PassTimes, best_length, shared_lengths
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.rule.signal_scores import SignalReader
from ssd_engine.rule.verifier import Verifier
from ssd_engine.rule.verify import first_positions, propose, verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ssd_engine.grammars.guide import Guide


class PairDecoder:
    """Decodes sequences with a target and a draft, all of a round in the same passes."""

    def __init__(
        self, target: ModelRunner, draft: ModelRunner, eos_ids: Collection[int], signals: DraftSignals
    ) -> None:
        self._target = target
        self._draft = draft
        self._eos_ids = frozenset(eos_ids)
        self._refusal_ids = frozenset(signals.refusal_ids)
        self._signals = SignalReader(signals, draft.device)
        self._times = {runner: PassTimes() for runner in (target, draft)}
        self._seconds_in_passes = 0.0

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
            draft = self._draft.open(draft_ids, params.limit, given) if verifier.drafts else None
            if verifier.drafts and draft is None:
                return None
            if draft is not None:
                undone.callback(self._draft.close, draft)
            sequence = SequenceState(target, draft, verifier, guide, opening)
            undone.pop_all()
            return sequence

    def close(self, sequence: SequenceState) -> None:
        """Free what a sequence holds."""
        self._target.close(sequence.target)
        if sequence.draft is not None:
            self._draft.close(sequence.draft)

    def shut_down(self) -> None:
        """Let go of the models."""
        self._target.shut_down()
        self._draft.shut_down()

    @torch.inference_mode()
    def read_prompt(self, sequence: SequenceState) -> None:
        """Read one block of a prompt, in each model that has one left."""
        self._target.read_block(sequence.target)
        if sequence.draft is None:
            return
        heard = self._draft.read_block(sequence.draft)
        # The target's word on these places would cost a good part of a pass more, so there is no KL.
        used = set(sequence.verifier.used_signals) - {"kl"}
        if heard is not None and used:
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
        chosen_length = self._choose_length(sequences)
        start = time.perf_counter()
        self._seconds_in_passes = 0.0
        lengths = shared_lengths([_num_drafts(sequence, chosen_length) for sequence in sequences])
        proposals = [Proposal(sequence, length) for sequence, length in zip(sequences, lengths, strict=True)]
        draft_logits, drafted, probe_scores = self._propose(proposals)
        allowed = _stacked([each for proposal in proposals for each in proposal.allowed], drafted.device)
        target_logits = self._read(proposals, drafted)
        used = [signals for proposal in proposals for signals in proposal.used_signals]
        scores = self._signals.read(used, draft_logits, target_logits, probe_scores) if any(used) else ()
        turns = [proposal.turn for proposal in proposals]
        outcomes = verify(turns, target_logits, draft_logits, drafted, allowed, scores)
        accepted = [_accepted(proposal, outcome) for proposal, outcome in zip(proposals, outcomes, strict=True)]
        selection = time.perf_counter() - start - self._seconds_in_passes
        for sequence in sequences:
            sequence.timings.selection += selection
        return accepted

    def _propose(self, proposals: Sequence[Proposal]) -> tuple[Tensor, Tensor, Tensor]:
        """Step 1: m drafts L tokens, one after another, from its own prompt and all output so far.

        Returns:
            [P, V] float32 logits, [P] drafted ids and [P] scores of the probe at the positions of all proposals; zeros,
            -1 and zeros where nothing is drafted.
        """
        device = self._draft.device
        steps: list[tuple[list[Proposal], Tensor, Tensor, Tensor | None]] = []
        latest = torch.empty(0, dtype=torch.int64, device=device)
        drafting = [proposal for proposal in proposals if proposal.is_drafting]
        while drafting:
            step_logits, latest, step_scores = self._draft_step(drafting, latest)
            steps.append((drafting, step_logits, latest, step_scores))
            is_guided = any(proposal.sequence.guide is not None for proposal in drafting)
            token_ids = latest.tolist() if is_guided else [None] * len(drafting)
            for proposal, token_id in zip(drafting, token_ids, strict=True):
                proposal.add(token_id)
            stay = [index for index, proposal in enumerate(drafting) if proposal.is_drafting]
            if len(stay) < len(drafting):
                drafting, latest = [drafting[index] for index in stay], latest[stay]
        firsts = dict(zip(proposals, first_positions([proposal.turn for proposal in proposals]), strict=True))
        num_positions = sum(len(proposal.places) for proposal in proposals)
        drafted = torch.full((num_positions,), -1, device=device)
        logits = torch.zeros(num_positions, self._draft.vocab_size, device=device)
        scores = logits.new_zeros(num_positions)
        for step, (drafting, step_logits, latest, step_scores) in enumerate(steps):
            at = torch.tensor([firsts[proposal] + step for proposal in drafting], device=device)
            logits[at], drafted[at] = step_logits, latest
            if step_scores is not None:
                scores[at] = step_scores
        return logits, drafted, scores

    def _draft_step(self, proposals: Sequence[Proposal], latest: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """[R, V] float32 logits, [R] the tokens drafted next, and [R] scores of the probe where some proposal uses it.

        `latest` [R] are the tokens that were drafted before.
        """
        sequences = [proposal.sequence for proposal in proposals]
        rows = [row for sequence in sequences if (row := sequence.draft) is not None]
        unread = [proposal.unread for proposal in proposals]
        counts = [len(token_ids) for token_ids in unread]
        token_ids = _filled([i for each in unread for i in each], latest)
        with self._timed(self._draft, sequences, len(token_ids)):
            logits, hidden = self._draft.forward(rows, token_ids, counts), self._draft.hidden
        if len(token_ids) > len(rows):
            ends = [end - 1 for end in itertools.accumulate(counts)]
            logits, hidden = logits[ends], None if hidden is None else hidden[ends]
        logits = logits.to(torch.float32, copy=True)
        for place, proposal in enumerate(proposals):
            if (latched := proposal.latched) is not None:
                logits[place] = latched
        verifiers = [proposal.verifier for proposal in proposals]
        allowed = _stacked([proposal.allowed[-1] for proposal in proposals], logits.device)
        places = [proposal.places[-1] for proposal in proposals]
        uses_probe = hidden is not None and any("probe" in verifier.used_signals for verifier in verifiers)
        scores = self._signals.probe_scores(hidden) if hidden is not None and uses_probe else None
        return logits, propose(logits, verifiers, places, allowed), scores

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
        with self._timed(self._target, sequences, len(token_ids)):
            filled = _filled(token_ids, drafted[read])
            logits = self._target.forward([sequence.target for sequence in sequences], filled, counts)
        if len(ends) < len(token_ids):
            logits = logits[ends]
        return logits.to(drafted.device)

    def _choose_length(self, sequences: Sequence[SequenceState]) -> int:
        """L for the sequences that leave it to the engine."""
        rates = [sequence.acceptance.rate for sequence in sequences if sequence.has_chosen_length]
        if not rates:
            return 0
        for runner, times in self._times.items():
            if times.is_empty:
                self._calibrate(runner, times)
        return best_length(rates, self._times[self._draft], self._times[self._target])

    def _calibrate(self, runner: ModelRunner, times: PassTimes) -> None:
        """Measure passes of every size that one sequence may need, once; what follows keeps them up to date."""
        for tokens in range(1, LONGEST + 1):
            times.record(tokens, runner.seconds(tokens))

    @contextmanager
    def _timed(self, runner: ModelRunner, sequences: Sequence[SequenceState], tokens: int) -> Iterator[None]:
        """Enter the time of a pass over so many tokens, for the sequences that took part in it."""
        start, num_graphs = time.perf_counter(), runner.num_graphs
        yield
        runner.wait()
        elapsed = time.perf_counter() - start
        self._seconds_in_passes += elapsed
        times = self._times[runner]
        if not times.is_empty and runner.num_graphs == num_graphs:  # a pass that was captured took longer
            times.record(tokens, elapsed)
        for sequence in sequences:
            if runner is self._target:
                sequence.timings.target_forward += elapsed
            else:
                sequence.timings.draft_forward += elapsed


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
) -> PairDecoder:
    """Set a pair up to decode together; the arguments and errors are `SSDEngine()`'s."""
    vocab_size = shared_vocabulary_size(target, draft)
    require_signals(draft, signals, vocab_size)
    runners = (
        ModelRunner(target, vocab_size, compile=compile),
        ModelRunner(draft, vocab_size, compile=compile, layer=None if signals.probe is None else signals.probe.layer),
    )
    bytes_per_position = sum(runner.bytes_per_position for runner in runners)
    positions = plan_positions(bytes_per_position, max_batch_size, context_length, runners[0].device, kv_cache_bytes)
    for runner in runners:
        runner.allocate(positions, prefix_cache_bytes)
        runner.capture_graphs()
    return PairDecoder(*runners, eos_ids, signals)


def _num_drafts(sequence: SequenceState, chosen_length: int) -> int:
    """L for one sequence, no more than it may still have tokens."""
    setting = sequence.verifier.config.num_draft_tokens
    wanted = chosen_length if setting == "auto" else setting
    return min(wanted, sequence.num_remaining) if sequence.draft is not None else 0


def _accepted(proposal: Proposal, outcome: list[Choice] | Exception) -> list[Choice] | Exception:
    """What a round added to an answer; from here on others have gone on, so whatever goes wrong is its own."""
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return proposal.accept(outcome)
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


def _filled(token_ids: Sequence[int], drafted: Tensor) -> Tensor:
    """[T] int64 token ids, those that stand for drafted ones replaced by `drafted`, one after the other."""
    ids = torch.tensor(token_ids, dtype=torch.int64, device=drafted.device)
    return ids.masked_scatter(ids == DRAFTED, drafted)


def _stacked(allowed: Sequence[NDArray[np.bool_] | None], device: torch.device) -> Tensor | None:
    """[P, V] bool of what grammars allow at P positions; None where there is no grammar at any."""
    known = next((each for each in allowed if each is not None), None)
    if known is None:
        return None
    everything = np.ones_like(known)
    return torch.from_numpy(np.stack([everything if each is None else each for each in allowed])).to(device)
