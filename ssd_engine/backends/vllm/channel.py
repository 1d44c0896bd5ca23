"""How the trace leaves vLLM: as the rank of each chosen token, in the channel of the log-probabilities.

The log-probability of a chosen token comes with its rank, an integer that vLLM passes on untouched, token by token,
through every executor and also while streaming. Under SSD the rank says how the token was chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    def read(self, token_id: int, rank: int, logprob: float | None = None) -> Choice:
        """The next token, as the embedded engine would tell of it."""
        code = rank - 1
        matched, is_forced = bool(code & _MATCHED), bool(code & _FORCED)
        scheme = Scheme.UNION if code & _UNION else Scheme.INTERSECTION
        completed = None if is_forced else self._controller.record(matched)
        return Choice(token_id, matched, scheme, completed, is_forced, logprob)
