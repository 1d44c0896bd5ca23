"""The round: the draft proposes, the target reads once, the rule decides. This is the engine's only decoding loop."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ssd_engine.backends.transformers.runner import ModelRunner, Row
from ssd_engine.config import GenerationParams, SSDConfig
from ssd_engine.result import Timings
from ssd_engine.verify import Choice, Verifier


class SequenceState:
    """One answer in the making: its rows in both models, its rule, and the tokens chosen so far."""

    def __init__(self, target: Row, draft: Row | None, verifier: Verifier, max_new_tokens: int) -> None:
        self.target = target
        self.draft = draft
        self.verifier = verifier
        self.timings = Timings()
        self.num_chosen = 0
        self._max_new_tokens = max_new_tokens
        self._prompt_lengths = [len(row.token_ids) for row in self.rows]

    @property
    def rows(self) -> list[Row]:
        return [row for row in (self.target, self.draft) if row is not None]

    @property
    def cached_prompt_tokens(self) -> int:
        """Tokens of the target's prompt that were reused."""
        return self.target.cached_prompt_tokens

    @property
    def remaining(self) -> int:
        """Tokens that may still be chosen."""
        return self._max_new_tokens - self.num_chosen

    @property
    def num_drafts(self) -> int:
        """Tokens to draft in the next round."""
        return min(self.verifier.num_draft_tokens, self.remaining)

    def accept(self, choices: Sequence[Choice]) -> None:
        """Let the chosen tokens stand in both models, in place of what was drafted."""
        chosen = [choice.token_id for choice in choices]
        for row, prompt_length in zip(self.rows, self._prompt_lengths, strict=True):
            row.replace_from(prompt_length + self.num_chosen, chosen)
        self.num_chosen += len(chosen)


class Drafts:
    """What the draft proposed to one sequence in one round."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.probabilities: list[Tensor] = []


class PairDecoder:
    """Decodes sequences with a target and a draft, some rows at a time."""

    def __init__(self, target: ModelRunner, draft: ModelRunner, eos_ids: Collection[int]) -> None:
        self._target = target
        self._draft = draft
        self._eos_ids = frozenset(eos_ids)

    @torch.inference_mode()
    def open(
        self, target_ids: Sequence[int], draft_ids: Sequence[int], params: GenerationParams, config: SSDConfig
    ) -> SequenceState:
        """Begin an answer to a prompt, given in each model's own tokens."""
        verifier = Verifier(params, config, self._eos_ids, self._target.device)
        target = self._target.open(target_ids, params.max_new_tokens)
        draft = self._draft.open(draft_ids, params.max_new_tokens) if verifier.num_draft_tokens else None
        return SequenceState(target, draft, verifier, params.max_new_tokens)

    @torch.inference_mode()
    def round(self, sequences: Sequence[SequenceState]) -> list[list[Choice]]:
        """Advance each sequence by one round; a sequence whose prompt is still being read gains no token."""
        reading = [self._read_prompt(sequence) for sequence in sequences]
        ready = [sequence for sequence, busy in zip(sequences, reading, strict=True) if not busy]
        drafts = self._propose(ready)
        targets = self._read(ready, drafts)
        chosen = iter([self._decide(*item) for item in zip(ready, drafts, targets, strict=True)])
        return [[] if busy else next(chosen) for busy in reading]

    def _read_prompt(self, sequence: SequenceState) -> bool:
        """Read one block of a prompt; False when none is left."""
        blocks = [
            (runner, row)
            for runner, row in zip((self._target, self._draft), sequence.rows, strict=False)
            if row.next_block
        ]
        for runner, row in blocks:
            runner.read_block(row)
        return bool(blocks)

    def _propose(self, sequences: Sequence[SequenceState]) -> list[Drafts]:
        """Step 1: m drafts L tokens, one after another, from its own prompt and all output so far."""
        drafts = [Drafts() for _ in sequences]
        for step in range(max((sequence.num_drafts for sequence in sequences), default=0)):
            drafting = [(s, d) for s, d in zip(sequences, drafts, strict=True) if step < s.num_drafts]
            rows = [s.draft for s, _ in drafting if s.draft is not None]
            with _timed([s for s, _ in drafting], "draft_forward"):
                logits = self._draft.forward(rows, [1] * len(rows))
            for (sequence, draft), row, row_logits in zip(drafting, rows, logits, strict=True):
                p_draft = sequence.verifier.probabilities(row_logits)[0]
                token_id = sequence.verifier.draft(p_draft)
                draft.token_ids.append(token_id)
                draft.probabilities.append(p_draft)
                row.token_ids.append(token_id)
        return drafts

    def _read(self, sequences: Sequence[SequenceState], drafts: Sequence[Drafts]) -> list[Tensor]:
        """Step 2: M reads the first L - 1 drafts in one pass, which gives p_M at all L positions."""
        for sequence, draft in zip(sequences, drafts, strict=True):
            sequence.target.token_ids.extend(draft.token_ids[:-1])
        with _timed(sequences, "target_forward"):
            keep = [max(len(draft.token_ids), 1) for draft in drafts]
            return self._target.forward([sequence.target for sequence in sequences], keep)

    def _decide(self, sequence: SequenceState, drafts: Drafts, target_logits: Tensor) -> list[Choice]:
        """Steps 3 and 4: choose the tokens that stand, and roll both models back to them."""
        with _timed([sequence], "selection"):
            p_target = sequence.verifier.probabilities(target_logits)
            p_draft = torch.stack(drafts.probabilities) if drafts.probabilities else p_target[:0]
            p_draft = p_draft.to(p_target.device)
            choices = sequence.verifier.verify(p_target, p_draft, drafts.token_ids, sequence.remaining)
        sequence.accept(choices)
        return choices


@contextmanager
def _timed(sequences: Sequence[SequenceState], name: str) -> Iterator[None]:
    """Add the time spent inside to that timing of each sequence."""
    start = time.perf_counter()
    yield
    elapsed = time.perf_counter() - start
    for sequence in sequences:
        setattr(sequence.timings, name, getattr(sequence.timings, name) + elapsed)
