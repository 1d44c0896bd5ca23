"""A token's part of the trace as one small number: how it leaves vLLM, and how it travels to a server's clients.

Out of vLLM it goes as the rank of the chosen token, in the channel of the log-probabilities: an integer that vLLM
passes on untouched, token by token, through every executor and also while streaming. Ranks count from 1, codes from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ssd_engine.errors import SSDError
from ssd_engine.scheme import Scheme, SchemeController
from ssd_engine.trace import SafetyTrace
from ssd_engine.verify import NOT_NUMBERS, Choice

if TYPE_CHECKING:
    from torch import Tensor

    from ssd_engine.config import SSDConfig

_MATCHED, _UNION, _FORCED, _BEGINS_ROUND, _NOT_NUMBERS = 1, 2, 4, 8, 16


def encode(matched: Tensor, is_union: Tensor, is_forced: Tensor, is_broken: Tensor) -> Tensor:
    """[R, L] ranks, which count from 1, that say how rounds of up to L tokens were chosen.

    `is_broken` says where the models' numbers were NaN, so that nothing was chosen at all.
    """
    ranks = 1 + _MATCHED * matched.long() + _UNION * is_union.long() + _FORCED * is_forced.long()
    ranks += _NOT_NUMBERS * is_broken.long()
    ranks[:, 0] += _BEGINS_ROUND
    return ranks


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
        self.trace = SafetyTrace(bin_size=config.bin_size)

    def read(self, token_id: int, logprobs: Mapping[int, Any], top: int | None = None) -> Choice:
        """The next token, as the embedded engine would tell of it.

        Args:
            token_id: the token.
            logprobs: vLLM's `Logprob` of it and of others, by id.
            top: how many of the likeliest tokens are to be told; None: not even the chosen one's log-probability.

        Raises:
            SSDError: the models' numbers are NaN.
        """
        return with_logprobs(self.read_code(token_id, logprobs[token_id].rank - 1), logprobs, top)

    def read_code(self, token_id: int, code: int) -> Choice:
        """The next token, from its rank counted from 0; errors are `read`'s."""
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
        if completed is not None:
            trace.bins.append(completed)
            trace.bin_ends.append(len(trace.matched))
        return Choice(token_id, matched, scheme, completed, is_forced)
