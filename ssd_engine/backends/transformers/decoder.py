"""The round: the draft proposes, the target reads once, the rule decides. This is the engine's only decoding loop."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.loader import shared_vocabulary_size
from ssd_engine.backends.transformers.memory import plan_positions
from ssd_engine.backends.transformers.runner import ModelRunner, Row
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.draft_length import LONGEST, Acceptance, PassTimes, best_length
from ssd_engine.result import Timings
from ssd_engine.verify import Choice, Turn, Verifier, first_positions, probabilities, propose, verify


class SequenceState:
    """One answer in the making: its rows in both models, its rule, and how many tokens were chosen so far."""

    def __init__(self, target: Row, draft: Row | None, verifier: Verifier) -> None:
        self.target = target
        self.draft = draft
        self.verifier = verifier
        self.timings = Timings()
        self.acceptance = Acceptance()
        self.num_chosen = 0

    @property
    def rows(self) -> list[Row]:
        return [row for row in (self.target, self.draft) if row is not None]

    @property
    def cached_prompt_tokens(self) -> int:
        """Tokens of the target's prompt that were reused."""
        return self.target.cached_prompt_tokens

    @property
    def is_reading_prompt(self) -> bool:
        """Whether a part of the prompt, other than its last token, is still to be read."""
        return any(row.next_block for row in self.rows)

    @property
    def has_chosen_length(self) -> bool:
        """Whether the number of drafts is this engine's choice."""
        return self.verifier.drafts and self.verifier.config.num_draft_tokens == "auto"

    def turn(self, chosen_length: int) -> Turn:
        """This sequence's part in the next round."""
        setting = self.verifier.config.num_draft_tokens
        wanted = (chosen_length if setting == "auto" else setting) if self.draft is not None else 0
        remaining = self.verifier.params.max_new_tokens - self.num_chosen
        return Turn(self.verifier, self.num_chosen, min(wanted, remaining))

    def roll_back(self) -> None:
        """Undo what a round read but did not finish."""
        for row in self.rows:
            row.accept(())

    def accept(self, choices: Sequence[Choice]) -> None:
        """Let the chosen tokens stand in both models, in place of what was drafted."""
        chosen = [choice.token_id for choice in choices]
        for row in self.rows:
            row.accept(chosen)
        self.num_chosen += len(chosen)
        for choice in choices:
            self.acceptance.record(choice.matched)


class PairDecoder:
    """Decodes sequences with a target and a draft, all of a round in the same passes."""

    def __init__(self, target: ModelRunner, draft: ModelRunner, eos_ids: Collection[int]) -> None:
        self._target = target
        self._draft = draft
        self._eos_ids = frozenset(eos_ids)
        self._times = {runner: PassTimes() for runner in (target, draft)}
        self._seconds_in_passes = 0.0

    @property
    def positions(self) -> int:
        """Most token positions that one sequence can have."""
        return min(self._target.positions, self._draft.positions)

    def open(
        self, target_ids: Sequence[int], draft_ids: Sequence[int], params: GenerationParams, config: SSDConfig
    ) -> SequenceState | None:
        """Begin an answer to a prompt, given in each model's own tokens; None while the caches have no room for it."""
        verifier = Verifier(params, config, self._eos_ids)
        target = self._target.open(target_ids, params.max_new_tokens)
        if target is None:
            return None
        draft = self._draft.open(draft_ids, params.max_new_tokens) if verifier.drafts else None
        if verifier.drafts and draft is None:
            self._target.close(target)
            return None
        return SequenceState(target, draft, verifier)

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
        for runner, row in zip((self._target, self._draft), sequence.rows, strict=False):
            runner.read_block(row)

    @torch.inference_mode()
    def round(self, sequences: Sequence[SequenceState]) -> list[list[Choice] | Exception]:
        """Advance every sequence by one round; the prompts have been read.

        Returns:
            For each sequence the tokens chosen, or what went wrong with it alone.
        """
        try:
            return self._round(sequences)
        except Exception as error:
            for sequence in sequences:
                sequence.roll_back()
            if len(sequences) == 1:
                return [error]
            # Nothing was chosen yet. Whoever can go on, goes on; only those that fail by themselves have failed.
            return [self.round([sequence])[0] for sequence in sequences]

    def _round(self, sequences: Sequence[SequenceState]) -> list[list[Choice] | Exception]:
        chosen_length = self._choose_length(sequences)
        start = time.perf_counter()
        self._seconds_in_passes = 0.0
        turns = [sequence.turn(chosen_length) for sequence in sequences]
        p_draft, drafted = self._propose(sequences, turns)
        p_target = self._read(sequences, turns, drafted)
        outcomes = verify(turns, p_target, p_draft, drafted)
        for sequence, outcome in zip(sequences, outcomes, strict=True):
            sequence.accept([] if isinstance(outcome, Exception) else outcome)
        selection = time.perf_counter() - start - self._seconds_in_passes
        for sequence in sequences:
            sequence.timings.selection += selection
        return outcomes

    def _propose(self, sequences: Sequence[SequenceState], turns: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        """Step 1: m drafts L tokens, one after another, from its own prompt and all output so far.

        Returns:
            [P, V] p_m and [P] drafted ids at the positions of all turns; zeros and -1 where nothing is drafted.
        """
        firsts = first_positions(turns)
        num_positions = sum(turn.num_positions for turn in turns)
        drafted = torch.full((num_positions,), -1, device=self._draft.device)
        p_draft = torch.zeros(num_positions, self._draft.vocab_size, device=self._draft.device)
        active = [index for index, turn in enumerate(turns) if turn.num_drafts]
        latest = _last_tokens([sequences[index].draft for index in active], drafted.device)
        for step in range(max((turn.num_drafts for turn in turns), default=0)):
            if any(turns[index].num_drafts == step for index in active):
                stays = [place for place, index in enumerate(active) if turns[index].num_drafts > step]
                active = [active[place] for place in stays]
                latest = latest[stays]
            rows = [row for index in active if (row := sequences[index].draft) is not None]
            with self._timed(self._draft, [sequences[index] for index in active], len(active)):
                logits = self._draft.forward(rows, latest, [1] * len(rows))
            verifiers = [turns[index].verifier for index in active]
            p_step = probabilities(logits, verifiers)
            latest = propose(p_step, verifiers, [turns[index].place + step for index in active])
            at = torch.tensor([firsts[index] + step for index in active], device=drafted.device)
            p_draft[at] = p_step
            drafted[at] = latest
        return p_draft, drafted

    def _read(self, sequences: Sequence[SequenceState], turns: Sequence[Turn], drafted: Tensor) -> Tensor:
        """Step 2: M reads the last token and the first L - 1 drafts in one pass: [P, V] p_M at all positions."""
        token_ids = drafted.roll(1)
        firsts = torch.tensor(first_positions(turns), device=drafted.device)
        token_ids[firsts] = _last_tokens([sequence.target for sequence in sequences], drafted.device)
        counts = [turn.num_positions for turn in turns]
        with self._timed(self._target, sequences, sum(counts)):
            logits = self._target.forward([sequence.target for sequence in sequences], token_ids, counts)
        p_target = probabilities(logits, [turn.verifier for turn in turns for _ in range(turn.num_positions)])
        return p_target.to(drafted.device)

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
) -> PairDecoder:
    """Set a pair up to decode together; the arguments and errors are `SSDEngine()`'s."""
    vocab_size = shared_vocabulary_size(target, draft)
    runners = (
        ModelRunner(target, vocab_size, compile=compile),
        ModelRunner(draft, vocab_size, compile=compile),
    )
    bytes_per_position = sum(runner.bytes_per_position for runner in runners)
    positions = plan_positions(bytes_per_position, max_batch_size, context_length, runners[0].device, kv_cache_bytes)
    for runner in runners:
        runner.allocate(positions, prefix_cache_bytes)
        runner.capture_graphs()
    return PairDecoder(*runners, eos_ids)


def _last_tokens(rows: Sequence[Row | None], device: torch.device) -> Tensor:
    """[R] int64: the token of each row that was chosen last and not read yet."""
    return torch.tensor([row.token_ids[-1] for row in rows if row is not None], dtype=torch.int64, device=device)
