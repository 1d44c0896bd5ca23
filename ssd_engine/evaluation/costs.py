"""What the contestants' answers take, in forward passes and tokens read: figures that depend on no machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MeanCost:
    """Means over the answers of one contestant."""

    answers: int
    tokens: float
    """That an answer has."""
    target_passes: float
    draft_passes: float
    target_read: float
    """Tokens that the target reads, beside those that it writes."""
    draft_read: float


def mean_costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, MeanCost]:
    """The mean costs by contestant, over the trials that every contestant has answered; rows of speed are left out."""
    found: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        if row["measure"] != "speed" and "cost" in row:
            found[row["contestant"]][row["trial"]] = row
    common = set.intersection(*map(set, found.values())) if found else set()
    return {name: _mean([of[trial] for trial in common]) for name, of in found.items() if common}


def costs_table(costs: Mapping[str, MeanCost]) -> str:
    """The costs in Markdown."""
    lines = [
        f"| {name} | {cost.tokens:.1f} | {cost.target_passes:.1f} | {cost.draft_passes:.1f} | {cost.target_read:.0f} | "
        f"{cost.draft_read:.0f} |"
        for name, cost in costs.items()
    ]
    answers = next(iter(costs.values())).answers
    return (
        f"Means over {answers} prompts that all have answered. A pass goes through all of a model's weights; tokens "
        "are read many at a time.\n\n"
        "| | tokens written | target's passes | draft's passes | target reads | draft reads |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines)
    )


def _mean(rows: Sequence[Mapping[str, Any]]) -> MeanCost:
    def mean(name: str) -> float:
        return float(sum(row["cost"][name] for row in rows)) / len(rows)

    return MeanCost(
        answers=len(rows),
        tokens=sum(len(row["token_ids"]) for row in rows) / len(rows),
        target_passes=mean("target_passes"),
        draft_passes=mean("draft_passes"),
        target_read=mean("target_read"),
        draft_read=mean("draft_read"),
    )
