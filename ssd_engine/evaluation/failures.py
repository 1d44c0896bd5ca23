"""What failed in an evaluation and is left out of its rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How many answers of a contestant, or judgements of a judge, there are not."""

    what: str
    count: int
    total: int
    """Of all that were asked for, answered or not."""
    example: str
    """The first one's error."""

    def __str__(self) -> str:
        return f"{self.count} of {self.total} {self.what} failed, the first with {self.example}"


def failures_of(what: str, asked: Sequence[str], errors: Mapping[str, str]) -> list[Failures]:
    """The failures among the keys that were asked for, as a list of one; empty where there are none."""
    failed = [errors[name] for name in asked if name in errors]
    return [Failures(what=what, count=len(failed), total=len(asked), example=failed[0])] if failed else []
