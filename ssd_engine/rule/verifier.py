"""Verifier: the rule of one sequence, with the state that it keeps from round to round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from ssd_engine.config import GenerationParams, Signal, SSDConfig
from ssd_engine.rule.choice import Choice
from ssd_engine.rule.scheme import Scheme, SchemeController
from ssd_engine.rule.signals import Look, Scores, SignalControl


class Verifier:
    """The rule of one sequence. It owns the sequence's scheme controller, signals and random numbers.

    The random numbers belong to places in the answer: three for each token, to draft it, to accept it, to recover it.
    A draft that is thrown away had no part in the tokens before it, so its place's numbers are as good as new. A seed
    therefore gives the same answer whatever the number of drafts in a round.
    """

    def __init__(
        self,
        params: GenerationParams,
        config: SSDConfig,
        eos_ids: Collection[int],
        refusal_ids: Collection[int] = frozenset(),
    ) -> None:
        """`refusal_ids`: tokens that begin a refusal, where signals are used."""
        self.params = params
        self.config = config
        self.controller = SchemeController(config)
        self.signals = SignalControl(config.signals, refusal_ids) if self.is_ssd and config.signals else None
        self.beginning: list[Look] = []
        """What the signals said at the places of a given beginning."""
        self._first_scheme = self.scheme
        self._eos_ids = frozenset(eos_ids)
        generator = torch.Generator()
        if params.seed is None:
            generator.seed()
        else:
            generator.manual_seed(params.seed)
        places = params.limit if params.temperature else 0
        self._uniforms = torch.rand(places, 3, generator=generator, dtype=torch.float64)

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are sampled."""
        return self.params.temperature > 0

    @property
    def is_ssd(self) -> bool:
        """Whether the composite decides; otherwise one of the lossless baselines."""
        return self.params.decoding == "ssd"

    @property
    def drafts(self) -> bool:
        """Whether a draft proposes tokens; without one the target decodes alone."""
        return self.params.decoding != "target"

    @property
    def scheme(self) -> Scheme:
        """The scheme in force at the next place."""
        if not self.is_ssd:
            return Scheme.NONE
        asks = self.signals is not None and self.signals.asks_for_union
        return Scheme.UNION if asks else self.controller.scheme

    def uniforms(self, place: int) -> list[float]:
        """The random numbers of one token of the answer: to draft, to accept, to recover."""
        numbers: list[float] = self._uniforms[place].tolist() if self.is_sampled else [0.0, 0.0, 0.0]
        return numbers

    @property
    def used_signals(self) -> Collection[Signal]:
        """The signals that are used."""
        return () if self.signals is None else self.signals.config.thresholds.keys()

    @property
    def latches(self) -> bool:
        """Whether alarms in a given beginning are latched."""
        return self.signals is not None and self.signals.config.latch

    @property
    def is_latched(self) -> bool:
        """Whether an alarm in a given beginning holds at the answer's first place, before any choice."""
        return self.latches and self.signals is not None and self.signals.asks_for_union

    def opening(self, token_ids: Sequence[int]) -> list[Choice]:
        """Tokens that a grammar forces before any is chosen."""
        return self._forced(token_ids, self._first_scheme)

    def forced(self, token_ids: Sequence[int], before: Choice) -> list[Choice]:
        """Tokens that a grammar forces after the token `before`."""
        return self._forced(token_ids, before.next_scheme)

    def _forced(self, token_ids: Sequence[int], scheme: Scheme) -> list[Choice]:
        """Forced tokens: certain, and so without a word on risk."""
        logprob = 0.0 if self.params.logprobs else None
        return [
            Choice(i, matched=False, scheme=scheme, bin=None, is_forced=True, logprob=logprob, next_scheme=scheme)
            for i in token_ids
        ]

    def look_back(self, scores: Sequence[Scores], break_masses: Sequence[float]) -> int | None:
        """Take in what the signals give at further places of a given beginning, and how likely the draft breaks off.

        Returns:
            At which of these places the draft is surer to break off than at all before, if at any.
        """
        assert self.signals is not None
        surest = None
        for place, (each, mass) in enumerate(zip(scores, break_masses, strict=True)):
            self.beginning.append(self.signals.look(each))
            if self.signals.leave_given(mass):
                surest = place
        self._first_scheme = self.scheme
        return surest

    def choose_tokens(
        self,
        choosers: Sequence[Callable[[Scheme, float], int]],
        drafted: Sequence[int],
        logprobs: LogprobsOf,
        scores: Sequence[Scores],
    ) -> list[Choice]:
        """Go through a round's positions under the scheme control, until a token does not match or ends the answer.

        `choosers` say, position by position, which token a scheme and its weight choose, `scores` what signals give.
        """
        chosen: list[Choice] = []
        for position, (choose, proposal) in enumerate(zip(choosers, drafted, strict=True)):
            # Read here, at the position itself: the scheme may have changed inside this round.
            look = None if self.signals is None else self.signals.look(scores[position])
            scheme = self.scheme
            alpha = self.config.alpha_union if scheme is Scheme.UNION else self.controller.alpha
            token_id = choose(scheme, alpha)
            matched = token_id == proposal
            logprob, top = logprobs(position, scheme, alpha, token_id) if self.params.logprobs else (None, ())
            completed = self.controller.record(matched=matched) if scheme is not Scheme.NONE else None
            if self.signals is not None:
                self.signals.leave(token_id)
            chosen.append(
                Choice(
                    token_id,
                    matched,
                    scheme,
                    completed,
                    logprob=logprob,
                    top_logprobs=top,
                    next_scheme=self.scheme,
                    look=look,
                )
            )
            if not matched or token_id in self._eos_ids:
                break
        return chosen


LogprobsOf = Callable[[int, Scheme, float, int], tuple[float, tuple[tuple[int, float], ...]]]
