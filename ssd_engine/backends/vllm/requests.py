"""What the workers know of the requests that ask for SSD: their settings, their scheme control, their seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssd_engine.backends.vllm.uniforms import seed_of
from ssd_engine.config import SIGNALS, Signal, SSDConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.rule.draft_signals import DraftSignals
from ssd_engine.rule.scheme_batch import SchemeBatch
from ssd_engine.rule.signal_batch import SignalBatch
from ssd_engine.rule.signal_scores import refusal_mass

EXTRA_ARG = "ssd"
"""The key of `SamplingParams.extra_args` under which a request asks for SSD."""


SIGNALS_ARG = "ssd_signals"
"""The key of vLLM's `additional_config` for the folder of what signals are read from the draft with."""
SHARED_ARG = "ssd_shared_vocabulary"
"""The key there for how many token ids both models have; those beyond are padding."""
GIVEN_ARG = "ssd_given"
"""The key under which it says how many tokens at its prompt's end are a given beginning of the answer."""


def configured_signals(vllm_config: Any) -> DraftSignals:
    """What signals are read from the draft with, as vLLM was told at its start."""
    folder = vllm_config.additional_config.get(SIGNALS_ARG)
    return DraftSignals() if folder is None else DraftSignals.load(folder)


def requested_config(block: Any, num_draft_tokens: int) -> SSDConfig | None:
    """What a request's `ssd` block asks for; None for vLLM's own rule (no block, or false).

    Raises:
        InvalidRequestError: the block has a field that is unknown or impossible, here or at all.
    """
    if block is None or block is False:
        return None
    if block is True:
        block = {}
    if not isinstance(block, Mapping):
        raise InvalidRequestError(f"ssd={block!r}: give an object of SSD settings, or false")
    config = SSDConfig(**{"num_draft_tokens": num_draft_tokens, **block})
    if config.num_draft_tokens != num_draft_tokens:
        raise InvalidRequestError(
            f"ssd.num_draft_tokens={config.num_draft_tokens!r}: with vLLM it is the engine's, "
            f"{num_draft_tokens} here; leave it out"
        )
    if config.draft_system_prompt is not None:
        raise InvalidRequestError(
            f"ssd.draft_system_prompt={config.draft_system_prompt!r}: vLLM gives both models one prompt; leave it out"
        )
    return config


@dataclass(frozen=True, kw_only=True)
class RequestSettings:
    """What one request asks for."""

    config: SSDConfig
    seed: int | None
    temperature: float
    """0 is greedy."""
    top_k: int | None
    top_p: float
    num_given: int = 0
    """Tokens at the prompt's end that are a given beginning of the answer."""

    @property
    def used_signals(self) -> Collection[Signal]:
        """The signals that the request uses."""
        return () if self.config.signals is None else self.config.signals.thresholds.keys()

    @property
    def num_heard(self) -> int:
        """Of those that are given: whose risk signals are to tell; there is no KL."""
        return self.num_given if set(self.used_signals) - {"kl"} else 0

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are sampled."""
        return self.temperature > 0

    @property
    def is_truncated(self) -> bool:
        """Whether the composite is cut before a token is drawn."""
        return self.top_k is not None or self.top_p < 1


class RequestTable:
    """The requests by id, each with a slot in tensors of their settings and scheme control.

    So they are found wherever vLLM's batch has moved them, and a step looks all of its requests up at once.
    """

    def __init__(self, device: torch.device, signals: DraftSignals | None = None) -> None:
        """`signals`: what signals are read from the draft with; None: no request uses any."""
        self._device = device
        signals = signals or DraftSignals()
        self._refusal_ids = torch.tensor(signals.refusal_ids, dtype=torch.int64, device=device)
        self._break_ids = torch.tensor(signals.break_ids, dtype=torch.int64, device=device)
        self._slots: dict[str, int] = {}
        self._settings: dict[str, RequestSettings] = {}
        self._uses: Counter[Signal] = Counter()
        """How many requests use each signal."""
        self._free: list[int] = []
        self._schemes = SchemeBatch.of([], device).rows
        self._signals = SignalBatch.rows_of([], device)
        self._num_given: dict[int, int] = {}
        """Of slots with a given beginning that is heard."""
        self._breaking_logits: dict[int, Tensor] = {}
        """Of some of these: [V] the draft's, where it is surest to break the beginning off."""
        self._beginnings = torch.empty(0, len(SIGNALS), device=device)
        """Each signal's highest score over the given beginning; -1 where there is none."""
        self._seeds = torch.empty(0, dtype=torch.int64, device=device)
        self._numbers = torch.empty(0, 4, dtype=torch.float64, device=device)
        """Temperature, top-k, top-p, c."""

    def slot(self, request_id: str) -> int | None:
        """Where a request's row is; None for one that is not known."""
        return self._slots.get(request_id)

    def enter(self, request_id: str, settings: RequestSettings) -> int:
        """Begin a request's answer; returns its slot."""
        if not self._free:
            self._grow()
        slot = self._slots[request_id] = self._free.pop()
        self._settings[request_id] = settings
        self._uses.update(settings.used_signals)
        self._schemes[slot] = SchemeBatch.of([settings.config], self._device).rows[0]
        self._signals[slot] = SignalBatch.rows_of([settings.config.signals], self._device)[0]
        self._beginnings[slot] = -1.0
        self._num_given[slot] = settings.num_heard
        self._seeds[slot] = seed_of(request_id, settings.seed)
        top_k = torch.iinfo(torch.int32).max if settings.top_k is None else settings.top_k
        numbers = [settings.temperature, top_k, settings.top_p, settings.config.sample_space_size]
        self._numbers[slot] = torch.tensor(numbers, dtype=torch.float64)
        return slot

    def drop(self, request_id: str) -> None:
        """Forget a request, if it is known."""
        slot = self._slots.pop(request_id, None)
        if slot is not None:
            self._uses.subtract(self._settings.pop(request_id).used_signals)
            self._breaking_logits.pop(slot, None)
            self._free.append(slot)

    def schemes(self, slots: Tensor) -> SchemeBatch:
        """The scheme control of the requests in `slots` [R]; `store` it when it has moved on."""
        return SchemeBatch(self._schemes[slots])

    def signals(self, slots: Tensor) -> SignalBatch:
        """The signals of the requests in `slots` [R]; `store` them when they have moved on."""
        return SignalBatch(self._signals[slots], self._refusal_ids)

    def num_given(self, slot: int) -> int:
        """Tokens at the prompt's end that are a given beginning whose risk signals are to tell."""
        return self._num_given[slot]

    def look_back(self, slot: int, scores: Tensor, logits: Tensor) -> None:
        """Take in the next P places of a given beginning.

        Args:
            slot: the request's.
            scores: [P, signals] what signals say, -1 for nothing.
            logits: [P, V] the draft's.
        """
        signals = SignalBatch(self._signals[slot : slot + 1], self._refusal_ids)
        counts = torch.ones(1, dtype=torch.bool, device=scores.device)
        masses = refusal_mass(logits, self._break_ids) if bool(signals.latches) else scores.new_zeros(len(scores))
        is_surest = []
        for each, break_mass in zip(scores, masses, strict=True):
            _, smoothed = signals.look(each[None], counts)
            is_surest.append(signals.leave_given(break_mass[None]))
            self._beginnings[slot] = self._beginnings[slot].maximum(smoothed[0])
        surest = torch.cat(is_surest).nonzero()
        if len(surest):
            self._breaking_logits[slot] = logits[surest[-1, 0]].clone()

    def latched(self, slot: int) -> Tensor | None:
        """[V] what the draft says at the answer's first place, where an alarm in a given beginning is latched."""
        is_latched = bool(SignalBatch(self._signals[slot : slot + 1], self._refusal_ids).is_latched)
        return self._breaking_logits.get(slot) if is_latched else None

    def beginnings(self, slots: Tensor) -> Tensor:
        """[R, signals] each signal's highest score over the given beginnings; -1 where there is none."""
        return self._beginnings[slots]

    def uses(self, signal: Signal) -> bool:
        """Whether some known request uses a signal."""
        return self._uses[signal] > 0

    @property
    def refusal_ids(self) -> Tensor:
        """[K] int64 tokens that begin a refusal."""
        return self._refusal_ids

    def store(self, slots: Tensor, schemes: SchemeBatch, signals: SignalBatch) -> None:
        """Keep what a step has changed, at the rows of its requests."""
        self._schemes[slots] = schemes.rows
        self._signals[slots] = signals.rows

    def seeds(self, slots: Tensor) -> Tensor:
        """[R] int64."""
        return self._seeds[slots]

    def sizes(self, slots: Tensor) -> Tensor:
        """[R] int64 c."""
        return self._numbers[slots, 3].long()

    def temperatures(self, slots: Tensor) -> Tensor | None:
        """[R] float32; None where no known request is sampled."""
        if not any(settings.is_sampled for settings in self._settings.values()):
            return None
        return self._numbers[slots, 0].float()

    def truncation(self, slots: Tensor) -> tuple[Tensor, Tensor] | None:
        """[R] top-k and [R] top-p; None where no known request is truncated."""
        if not any(settings.is_truncated for settings in self._settings.values()):
            return None
        return self._numbers[slots, 1].long(), self._numbers[slots, 2].float()

    def _grow(self) -> None:
        more = max(len(self._seeds), 16)
        self._free += range(len(self._seeds) + more - 1, len(self._seeds) - 1, -1)
        self._schemes = torch.cat([self._schemes, self._schemes.new_zeros(more, self._schemes.shape[1])])
        self._signals = torch.cat([self._signals, self._signals.new_zeros(more, self._signals.shape[1])])
        self._beginnings = torch.cat([self._beginnings, self._beginnings.new_zeros(more, len(SIGNALS))])
        self._seeds = torch.cat([self._seeds, self._seeds.new_zeros(more)])
        self._numbers = torch.cat([self._numbers, self._numbers.new_zeros(more, self._numbers.shape[1])])
