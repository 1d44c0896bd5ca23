"""A safety report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from ssd_engine.evaluation.costs import costs_table
from ssd_engine.evaluation.failures import Failures
from ssd_engine.evaluation.forms import FORMS
from ssd_engine.evaluation.glance import glance
from ssd_engine.evaluation.safety_report import Line, SafetyReport
from ssd_engine.evaluation.settings import Contestant
from ssd_engine.evaluation.trials import TWIN
from ssd_engine.evaluation.union_places import places_table


def to_markdown(report: SafetyReport, plots: Sequence[str] = ()) -> str:
    """Tables, what the judges were asked, and the plots by file name."""
    names = [name for name in get_args(Contestant) if any(name in line.rates for line in report.lines)]
    sections = [f"# Safety of {report.pair}", _environment(report), f"## At a glance\n\n{glance(report)}"]
    for title, groups in _by_kind(report.lines).items():
        if groups:
            sections.append(f"## {title}\n\n{_table(groups, names)}")
    if forms := _forms(report.lines):
        sections.append(f"## Forms\n\n{forms}")
    if report.failures:
        sections.append(f"## Failed\n\n{_failures(report.failures)}")
    if report.costs:
        sections.append(f"## What an answer takes\n\n{costs_table(report.costs)}")
    if report.speeds:
        rows = [
            f"| {name} | {speed.tokens_per_second:.2f} | {speed.atgr:.2f} |" for name, speed in report.speeds.items()
        ]
        sections.append(
            "## Speed\n\nOne request at a time, the contestants in turn. ATGR: seconds per token over the target's "
            "own; below 1 is faster.\n\n| | tokens/s | ATGR |\n|---|---|---|\n" + "\n".join(rows)
        )
    if report.union_places:
        sections.append(f"## Where Union begins\n\n{places_table(report.union_places)}")
    if report.judges:
        asked = "\n\n".join(f"**{name}**\n\n```\n{prompt}\n```" for name, prompt in report.judges.items())
        sections.append(
            "## Judges\n\nPhrases are a low bar: they see whether an answer refuses in the usual words, and not what "
            f"it says. The paper's measure looks for a phrase alone.\n\n{asked}"
        )
    if report.labelled is not None:
        sections.append(f"## Judges and people\n\n{report.labelled.to_markdown()}")
    sections += [f"![{name}]({name})" for name in plots]
    return "\n\n".join(sections) + "\n"


def _environment(report: SafetyReport) -> str:
    return (
        "Greedy. Rates in %, with Wilson intervals of 95%; differences from the target over the same prompts, in "
        "points. " + ", ".join(f"{name} {value}" for name, value in report.environment.items() if value) + "."
    )


def _forms(lines: Sequence[Line]) -> str:
    """What the forms do that were asked."""
    groups = {line.group for line in lines}
    return "\n".join(f"- {name}: {form.description}" for name, form in FORMS.items() if name in groups)


def _failures(failures: Sequence[Failures]) -> str:
    cells = [(failed.what, str(failed.count), str(failed.total), failed.example) for failed in failures]
    rows = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in cells]
    return (
        "These are not in the rates. The same command asks again; `answers.jsonl` and `judgements.jsonl` hold every "
        "error.\n\n| | failed | of | the first error |\n|---|---|---|---|\n" + "\n".join(rows)
    )


def _by_kind(lines: Sequence[Line]) -> dict[str, list[Line]]:
    twins = [line for line in lines if line.group.startswith(TWIN)]
    costs = [line for line in lines if line.group in ("over-refusal", "utility", "ordinary")]
    attacks = [line for line in lines if line not in twins and line not in costs]
    return {"Attacks": attacks, "Harmless requests in the same forms": twins, "What it costs": costs}


def _table(lines: Sequence[Line], names: Sequence[str]) -> str:
    differing = [name for name in names if name != "target"]
    heads = ["", "measure", "judge", "prompts", *names, *(f"{name} - target" for name in differing)]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in lines:
        cells = [line.group, line.measure, line.judge, str(max(rate.total for rate in line.rates.values()))]
        cells += [str(line.rates.get(name, "")) for name in names]
        cells += [str(line.differences.get(name, "")) for name in differing]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
