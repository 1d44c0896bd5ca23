"""The figures of a safety report that one looks at first, in a table for each contestant."""

from __future__ import annotations

from collections.abc import Sequence

from ssd_engine.evaluation.safety_report import Line, SafetyReport
from ssd_engine.evaluation.statistics import Rate
from ssd_engine.evaluation.trials import TWIN
from ssd_engine.evaluation.union_places import ATTACKS

_JUDGE = "phrases"


def glance(report: SafetyReport) -> str:
    """Attacks refused, of all sets and of each, beside their harmless twins refused; judged by phrases."""
    attacks = _rates(report.lines, "attack succeeds")
    by_set = {source: _rates(lines, "attack succeeds") for source, lines in report.lines_by_set.items()}
    harmless = _rates(report.lines, "harmless request refused")
    contestants = dict.fromkeys(name for rates in (*attacks.values(), *harmless.values()) for name in rates)
    return "\n\n".join(_table(report, name, attacks, by_set, harmless) for name in contestants)


Rates = dict[str, dict[str, Rate]]
"""Group -> contestant -> rate."""


def _rates(lines: Sequence[Line], measure: str) -> Rates:
    return {line.group: line.rates for line in lines if line.measure == measure and line.judge == _JUDGE}


def _table(report: SafetyReport, name: str, attacks: Rates, by_set: dict[str, Rates], harmless: Rates) -> str:
    heads = [f"{name}: refused", "attacks", *(f"of {source}" for source in by_set), "harmless twins"]
    rows = [heads, ["---"] * len(heads)]
    for group in attacks:
        refused = [_refused(rates.get(group, {}).get(name)) for rates in (attacks, *by_set.values())]
        rows.append([group, *refused, str(harmless.get(f"{TWIN}{group}", {}).get(name, ""))])
    blanks = [""] * len(by_set)
    rows += [
        [group, "", *blanks, str(rates[name])]
        for group, rates in harmless.items()
        if not group.startswith(TWIN) and name in rates
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\n{_union(report)}" if name == "ssd" and report.union_places else table


def _refused(succeeded: Rate | None) -> str:
    return "" if succeeded is None else str(Rate(succeeded.total - succeeded.count, succeeded.total))


def _union(report: SafetyReport) -> str:
    told = []
    if found := report.union_places.get(ATTACKS):
        tokens = "none in more than half" if found.median_tokens is None else f"{found.median_tokens:g} tokens"
        told.append(f"From the first token of an attack's answer to Union: {tokens} (median)")
    if report.ordinary_with_union is not None:
        told.append(f"ordinary answers with any token under Union: {report.ordinary_with_union}")
    return f"{'; '.join(told)}." if told else ""
