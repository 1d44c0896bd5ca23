"""How many tokens sequences draft that share a round, where their settings name a number."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

LONGEST_IN_COMPANY = 8
"""Most tokens that a sequence drafts whose round others share."""


def shared_lengths(wanted: Sequence[int]) -> list[int]:
    """What sequences that share a round draft, of the tokens that each of them wants to (0: none is drafted).

    In company nobody drafts more than `LONGEST_IN_COMPANY`, nor more than the lower median of what is wanted by those
    that draft: so one sequence's long drafts do not make the others wait. No answer depends on it.
    """
    drafting = [length for length in wanted if length]
    if len(wanted) < 2 or not drafting:
        return list(wanted)
    most = min(statistics.median_low(drafting), LONGEST_IN_COMPANY)
    return [min(length, most) for length in wanted]
