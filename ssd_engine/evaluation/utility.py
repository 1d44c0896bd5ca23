"""GSM8K: the number that an answer comes to."""

from __future__ import annotations

import re

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_MARKED = (
    re.compile(rf"####\s*\$?\s*({_NUMBER})"),
    re.compile(rf"\\boxed{{\s*\\?\$?\s*({_NUMBER})"),
    re.compile(rf"(?:final )?answer(?: is:?|:)\s*\**\s*\$?\s*({_NUMBER})", re.IGNORECASE),
)


def final_number(text: str) -> float | None:
    r"""The last marked result (`#### 7`, `\boxed{7}`, "the answer is 7"), or else the last number of the text."""
    for pattern in (*_MARKED, re.compile(f"({_NUMBER})")):
        if found := pattern.findall(text):
            return float(found[-1].replace(",", ""))
    return None


def is_exact(text: str, expected: str) -> bool:
    """Whether the answer comes to the expected number; that may stand alone or at the end of a worked solution."""
    wanted = final_number(expected)
    return wanted is not None and final_number(text) == wanted
