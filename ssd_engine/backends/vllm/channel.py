"""How the trace leaves vLLM: as the rank of each chosen token, in the channel of the log-probabilities.

The log-probability of a chosen token comes with its rank, an integer that vLLM passes on untouched, token by token,
through every executor and also while streaming. Under SSD the rank says how the token was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ssd_engine.scheme import Scheme, SchemeController
from ssd_engine.verify import Choice

if TYPE_CHECKING:
    from torch import Tensor

    from ssd_engine.config import SSDConfig

_MATCHED, _UNION, _FORCED = 1, 2, 4


def encode(matched: Tensor, is_union: Tensor, is_forced: Tensor) -> Tensor:
    """Ranks, which count from 1, that say how tokens were chosen; all tensors have one shape."""
    return 1 + _MATCHED * matched.long() + _UNION * is_union.long() + _FORCED * is_forced.long()


class TraceReader:
    """Tells from ranks how one answer's tokens were chosen, bins included."""

    def __init__(self, config: SSDConfig) -> None:
        self._controller = SchemeController(config)

    def read(self, token_id: int, logprobs: Mapping[int, Any], top: int | None = None) -> Choice:
        """The next token, as the embedded engine would tell of it.

        Args:
            token_id: the token.
            logprobs: vLLM's `Logprob` of it and of others, by id.
            top: how many of the likeliest tokens are to be told; None: not even the chosen one's log-probability.
        """
        code = logprobs[token_id].rank - 1
        matched, is_forced = bool(code & _MATCHED), bool(code & _FORCED)
        scheme = Scheme.UNION if code & _UNION else Scheme.INTERSECTION
        completed = None if is_forced else self._controller.record(matched)
        if top is None:
            return Choice(token_id, matched, scheme, completed, is_forced)
        ordered = sorted(((i, each.logprob) for i, each in logprobs.items()), key=lambda each: (-each[1], each[0]))
        likeliest = tuple((i, logprob) for i, logprob in ordered[:top] if logprob > -float("inf"))
        return Choice(token_id, matched, scheme, completed, is_forced, logprobs[token_id].logprob, likeliest)
