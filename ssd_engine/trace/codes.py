"""A token's part of the trace as one small number: how it leaves vLLM, and how it travels to a server's clients.

Out of vLLM it goes as the rank of the chosen token, in the channel of the log-probabilities: an integer that vLLM
passes on untouched, token by token, through every executor and also while streaming. Ranks count from 1, codes from 0.

A code's lowest four bits say how the token was chosen; they are the digit that clients get. The fifth says that nothing
was. Above them stands what signals said: a bit for an alarm, and each signal's score in `_SCORE_BITS` bits, rounded on
its own side of the threshold. With an answer's first token come the highest scores over a given beginning, and a bit
that says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ssd_engine.config import SIGNALS
from ssd_engine.errors import SSDError
from ssd_engine.rule.choice import NOT_NUMBERS, Choice
from ssd_engine.rule.scheme import Scheme, SchemeController
from ssd_engine.rule.signals import Look
from ssd_engine.trace.safety_trace import SafetyTrace

if TYPE_CHECKING:
    from torch import Tensor

    from ssd_engine.config import Signal, SignalConfig, SSDConfig

_MATCHED, _UNION, _FORCED, _BEGINS_ROUND, _NOT_NUMBERS, _ALARM, _GIVEN = 1, 2, 4, 8, 16, 32, 64
_DIGIT = 15
_FLAG_BITS = 7
_SCORE_BITS = 9
"""So that all fits into the 63 bits of a rank."""
_STEPS = 2**_SCORE_BITS - 1
_BEGINNING_BITS = _FLAG_BITS + len(SIGNALS) * _SCORE_BITS


def encode(matched: Tensor, is_union: Tensor, is_forced: Tensor, is_broken: Tensor) -> Tensor:
    """[R, L] ranks, which count from 1, that say how rounds of up to L tokens were chosen.

    `is_broken` says where the models' numbers were NaN, so that nothing was chosen at all.
    """
    ranks = 1 + _MATCHED * matched.long() + _UNION * is_union.long() + _FORCED * is_forced.long()
    ranks += _NOT_NUMBERS * is_broken.long()
    ranks[:, 0] += _BEGINS_ROUND
    return ranks


def encode_signals(has_alarm: Tensor, scores: Tensor, thresholds: Tensor) -> Tensor:
    """[R, L] what is added to ranks where signals are used.

    Args:
        has_alarm: [R, L] bool: whether signals ask for Union from this token on.
        scores: [R, L, signals] in [0, 1].
        thresholds: [R, signals] float64, NaN for signals that are not used.
    """
    return _ALARM * has_alarm.long() + _steps(scores, thresholds[:, None], _FLAG_BITS)


def encode_beginnings(scores: Tensor, thresholds: Tensor) -> Tensor:
    """[R] what is added to the ranks of first tokens, for the highest `scores` [R, signals] over given beginnings.

    Scores of -1 say nothing; `thresholds` are as for `encode_signals`.
    """
    is_given = (scores >= 0).any(-1)
    codes = _GIVEN + _steps(scores.clamp_min(0.0), thresholds, _BEGINNING_BITS)
    return codes * is_given


def _steps(scores: Tensor, thresholds: Tensor, shift: int) -> Tensor:
    """[...] `scores` [..., signals] as whole numbers, one above the other from the bit `shift` on."""
    limits = (thresholds.nan_to_num(2.0) * _STEPS).ceil()
    steps = (scores.double().nan_to_num(0.0) * _STEPS).round()
    is_past = scores.double() >= thresholds
    steps = steps.maximum(limits).where(is_past, steps.minimum(limits - 1)).clamp(0, _STEPS).long()
    codes: Tensor = steps[..., 0] << shift
    for place in range(1, len(SIGNALS)):
        codes = codes + (steps[..., place] << (shift + place * _SCORE_BITS))
    return codes


def digit_of(code: int) -> str:
    """The part of a code that clients get, as a hexadecimal digit."""
    return f"{code & _DIGIT:x}"


def look_of(code: int, config: SignalConfig | None) -> Look | None:
    """What the signals said of the token with that code; None where none is used, or the token is forced."""
    if config is None or code & _FORCED:
        return None
    look = _look(code, config.thresholds, _FLAG_BITS)
    return look if code & _ALARM else Look(look.scores)


def beginning_of(code: int, config: SignalConfig | None) -> list[Look]:
    """What the signals said at most over a given beginning, as its last place; nothing where there is none."""
    if config is None or not code & _GIVEN:
        return []
    thresholds: dict[Signal, float] = {name: value for name, value in config.thresholds.items() if name != "kl"}
    return [_look(code, thresholds, _BEGINNING_BITS)]


def _look(code: int, thresholds: Mapping[Signal, float], shift: int) -> Look:
    """The scores that stand in a code from a bit on, with those that are past their thresholds as raised."""
    scores: dict[Signal, float] = {}
    for place, signal in enumerate(SIGNALS):
        if signal in thresholds:
            scores[signal] = (code >> (shift + place * _SCORE_BITS) & _STEPS) / _STEPS
    return Look(scores, tuple(name for name, score in scores.items() if score >= thresholds[name]))


def begins_round(code: int) -> bool:
    """Whether a token, by its rank counted from 0, was the first of its round."""
    return bool(code & _BEGINS_ROUND)


def with_logprobs(choice: Choice, logprobs: Mapping[int, Any], top: int | None) -> Choice:
    """`choice` with its log-probability, and those of the `top` likeliest tokens; None: as it is."""
    if top is None:
        return choice
    ordered = sorted(((i, each.logprob) for i, each in logprobs.items()), key=lambda each: (-each[1], each[0]))
    likeliest = tuple((i, logprob) for i, logprob in ordered[:top] if logprob > -float("inf"))
    return replace(choice, logprob=logprobs[choice.token_id].logprob, top_logprobs=likeliest)


class TraceReader:
    """Tells from ranks how one answer's tokens were chosen, and keeps the trace; its texts stay empty."""

    def __init__(self, config: SSDConfig) -> None:
        self._controller = SchemeController(config)
        self._signals = config.signals
        thresholds = {} if config.signals is None else config.signals.thresholds
        self.beginning: list[Look] = []
        """What the signals said over a given beginning."""
        self.trace = SafetyTrace(bin_size=config.bin_size, signal_thresholds=thresholds)

    def read(self, token_id: int, logprobs: Mapping[int, Any], top: int | None = None) -> Choice:
        """The next token, as the embedded engine would tell of it.

        Args:
            token_id: the token.
            logprobs: vLLM's `Logprob` of it and of others, by id.
            top: how many of the likeliest tokens are to be told; None: not even the chosen one's log-probability.

        Raises:
            SSDError: the models' numbers are NaN.
        """
        code = logprobs[token_id].rank - 1
        self.begin(beginning_of(code, self._signals))
        return with_logprobs(self.read_code(token_id, code, look_of(code, self._signals)), logprobs, top)

    def begin(self, looks: Sequence[Look]) -> None:
        """What the signals said over a given beginning, before the first token."""
        self.beginning += looks
        self.trace.begin(looks)

    def read_code(self, token_id: int, code: int, look: Look | None = None) -> Choice:
        """The next token, from its rank counted from 0 and what the signals said; errors are `read`'s."""
        if code & _NOT_NUMBERS:
            raise SSDError(NOT_NUMBERS)
        matched, is_forced = bool(code & _MATCHED), bool(code & _FORCED)
        scheme = Scheme.UNION if code & _UNION else Scheme.INTERSECTION
        completed = None if is_forced else self._controller.record(matched=matched)
        trace = self.trace
        if code & _BEGINS_ROUND or not trace.round_sizes:
            trace.round_sizes.append(0)
        trace.round_sizes[-1] += 1
        trace.schemes.append(scheme)
        trace.matched.append(matched)
        trace.forced.append(is_forced)
        trace.look(look)
        if completed is not None:
            trace.bins.append(completed)
            trace.bin_ends.append(len(trace.matched))
        return Choice(token_id, matched, scheme, completed, is_forced, look=look)
