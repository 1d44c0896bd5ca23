"""Where Union begins in the answers of `ssd`: how soon an attack is noticed, and how often an ordinary request is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ssd_engine.evaluation.judges import refusal_start
from ssd_engine.evaluation.statistics import Rate

ATTACKS = "attacks"
"""The name under which the answers to all attacks are counted together."""


@dataclass(frozen=True, kw_only=True)
class UnionPlaces:
    """Of the answers of one group, without those that refuse from their first word on and never needed Union."""

    with_union: Rate
    """Answers in which a token was chosen under Union."""
    median_tokens: float | None
    """Tokens before the first one under Union, where it never came infinitely many; None: it came in less than half."""

    def to_json(self) -> dict[str, Any]:
        """For the report's JSON."""
        return {"with_union": self.with_union.to_json(), "median_tokens": self.median_tokens}


def union_places(rows: Sequence[Mapping[str, Any]]) -> dict[str, UnionPlaces]:
    """Count the answers of `ssd`, by group and, for attacks, over all."""
    own = [row for row in rows if row["contestant"] == "ssd" and row["measure"] not in ("speed", "utility")]
    groups = {group: [row for row in own if row["group"] == group] for group in dict.fromkeys(r["group"] for r in own)}
    groups[ATTACKS] = [row for row in own if row["measure"] == "attack"]
    counted = {group: [row for row in found if _counts(row)] for group, found in groups.items()}
    return {group: _places(found) for group, found in counted.items() if found}


def _counts(row: Mapping[str, Any]) -> bool:
    return row["first_union"] is not None or refusal_start(row["text"].lstrip()) != 0


def _places(rows: Sequence[Mapping[str, Any]]) -> UnionPlaces:
    places = [math.inf if row["first_union"] is None else row["first_union"] for row in rows]
    middle = median(places)
    return UnionPlaces(
        with_union=Rate(sum(place < math.inf for place in places), len(places)),
        median_tokens=None if math.isinf(middle) else middle,
    )


def places_table(places: Mapping[str, UnionPlaces]) -> str:
    """The places in Markdown."""
    lines = [
        f"| {group} | {found.with_union.total} | {found.with_union} | "
        f"{'never' if found.median_tokens is None else f'{found.median_tokens:g}'} |"
        for group, found in places.items()
    ]
    return (
        "Answers of `ssd`, without those that refuse from their first word on and never needed Union. 0 tokens: "
        "already the first one was chosen under Union.\n\n"
        "| | answers | with any token under Union | median of the tokens before |\n|---|---|---|---|\n"
        + "\n".join(lines)
    )
