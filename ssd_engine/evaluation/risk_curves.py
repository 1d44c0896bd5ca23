"""Risk over the tokens of answers: what signals say of attacks, of their harmless twins and of ordinary requests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from ssd_engine.evaluation.trials import TWIN

_FEWEST = 4
"""Answers of which quartiles still say something."""


@dataclass(frozen=True, kw_only=True)
class RiskCurve:
    """Median and quartiles of the highest signal's score at each place, over the answers that reach it."""

    places: list[int]
    """0 is the answer's first token; the tokens of a given beginning stand before it."""
    low: list[float]
    median: list[float]
    high: list[float]
    answers: list[int]


def risk_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, RiskCurve]:
    """The curves of `ssd` by kind of request; none where no signal is used."""
    own = [row for row in rows if row["contestant"] == "ssd" and row["measure"] != "speed"]
    kinds = {
        "attacks": [row for row in own if row["measure"] == "attack"],
        "harmless twins": [row for row in own if row["group"].startswith(TWIN)],
        "ordinary": [row for row in own if row["measure"] == "ordinary"],
    }
    curves = {kind: _curve(found) for kind, found in kinds.items()}
    return {kind: curve for kind, curve in curves.items() if curve.places}


def _curve(rows: Sequence[Mapping[str, Any]]) -> RiskCurve:
    scores: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        begun = row["beginning_scores"]
        for place, score in enumerate([*begun, *row["risk_scores"]], -len(begun)):
            scores[place].append(score)
    places = [place for place in sorted(scores) if len(scores[place]) >= _FEWEST]
    cuts = [quantiles(scores[place], n=4, method="inclusive") for place in places]
    return RiskCurve(
        places=places,
        low=[cut[0] for cut in cuts],
        median=[cut[1] for cut in cuts],
        high=[cut[2] for cut in cuts],
        answers=[len(scores[place]) for place in places],
    )
