"""Plots of a safety report: attack success by prefill, match ratios with the threshold, safety against its price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_engine.evaluation.safety_report import REAL, Line, SafetyReport
from ssd_engine.evaluation.statistics import Rate
from ssd_engine.evaluation.sweep import SweepReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"target": "#7a7a7a", "speculative": "#b08bc9", "ssd": "#1f6fb4", "draft": "#c98a1f"}
_KINDS = {"attacks": "#c0392b", "harmless twins": "#c98a1f", "ordinary": "#2e7d4f"}


def draw(report: SafetyReport, sweep: SweepReport | None, folder: Path) -> list[Path]:
    """Write the plots that the report has something for; none where matplotlib (extra `plot`) is not installed."""
    if find_spec("matplotlib") is None:
        return []
    figures = {
        "attacks.png": _attacks(report),
        "match_ratios.png": _match_ratios(report),
        "risk.png": _risk(report),
        "trade_off.png": _trade_off(report, sweep),
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=150)
            written.append(folder / name)
    return written


def _figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _attacks(report: SafetyReport) -> Figure | None:
    """Attack success by tokens of prefill."""
    lines = [line for line in report.lines if line.measure == "attack succeeds" and line.judge == "phrases"]
    lengths = {"plain": 0} | {line.group: int(line.group.split()[1]) for line in lines if line.group[:8] == "prefill "}
    found = {lengths[line.group]: line.rates for line in lines if line.group in lengths}
    if len(found) < 2:
        return None
    figure, axes = _figure()
    for name, colour in _COLOURS.items():
        points = sorted((length, rates[name]) for length, rates in found.items() if name in rates)
        if points:
            x, y = [length for length, _ in points], [100 * rate.value for _, rate in points]
            low, high = zip(*(rate.interval for _, rate in points), strict=True)
            axes.plot(x, y, marker="o", color=colour, label=name)
            axes.fill_between(x, [100 * v for v in low], [100 * v for v in high], color=colour, alpha=0.12, lw=0)
    axes.set(xlabel="tokens of a compliant answer that are given", ylabel="attacks that succeed, %", ylim=(-2, 102))
    axes.set_xscale("symlog", linthresh=10)  # from 0 to thousands
    axes.set_xticks(sorted(found), labels=[str(length) for length in sorted(found)])
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure


def _match_ratios(report: SafetyReport) -> Figure | None:
    """Histograms of the bins' match ratios."""
    found = {kind: ratios for kind, ratios in report.match_ratios.items() if ratios}
    if not found:
        return None
    figure, axes = _figure()
    size = report.bin_size
    width = 0.4 / size
    for side, (kind, ratios) in enumerate(found.items()):
        matches = Counter(round(ratio * size) for ratio in ratios)
        places = [(i / size + (side - 0.5) * width) for i in range(size + 1)]
        shares = [100 * matches[i] / len(ratios) for i in range(size + 1)]
        axes.bar(places, shares, width, color=_KINDS[kind], label=f"{kind}, {len(ratios)} bins")
    axes.axvline(report.threshold, color="black", ls="--", lw=1, label=f"threshold {report.threshold}")
    axes.set(xlabel="match ratio of a bin", ylabel="share of bins, %")
    axes.legend(frameon=False)
    return figure


def _risk(report: SafetyReport) -> Figure | None:
    """The signals' risk over the tokens of attacks' answers and of harmless ones', median and quartiles."""
    if not report.risk_curves:
        return None
    figure, axes = _figure()
    for kind, curve in report.risk_curves.items():
        axes.plot(curve.places, curve.median, color=_KINDS[kind], label=f"{kind}, {max(curve.answers)} answers")
        axes.fill_between(curve.places, curve.low, curve.high, color=_KINDS[kind], alpha=0.15, lw=0)
    for name, threshold in report.signal_thresholds.items():
        axes.axhline(threshold, color="black", ls="--", lw=0.8, label=f"threshold of {name}, {threshold:g}")
    if any(curve.places[0] < 0 for curve in report.risk_curves.values()):
        axes.axvline(-0.5, color="black", ls=":", lw=0.8)
    axes.set(xlabel="token of the answer; below 0, of the given beginning", ylabel="risk", ylim=(-0.02, 1.02))
    axes.legend(frameon=False)
    return figure


def _pooled(lines: Sequence[Line]) -> dict[str, Rate]:
    """The rates of several groups as one, for each contestant; beginnings of the data's own are in others already."""
    rates = [(name, rate) for line in lines if REAL not in line.group for name, rate in line.rates.items()]
    return {
        name: Rate(sum(r.count for n, r in rates if n == name), sum(r.total for n, r in rates if n == name))
        for name in dict.fromkeys(name for name, _ in rates)
    }


def _trade_off(report: SafetyReport, sweep: SweepReport | None) -> Figure | None:
    """Attacks withstood against harmless requests refused; each point a contestant or a setting."""
    attacks = [line for line in report.lines if line.measure == "attack succeeds" and line.judge == "phrases"]
    harmless = [line for line in report.lines if line.measure == "harmless request refused" and line.judge == "phrases"]
    refusals = _pooled(harmless)
    successes = _pooled(attacks)
    if not successes or not refusals:
        return None
    figure, axes = _figure()
    for name, colour in _COLOURS.items():
        if name in successes and name in refusals:
            withstood = 1 - successes[name].value
            axes.scatter(100 * refusals[name].value, 100 * withstood, color=colour, label=name, zorder=3)
    if sweep is not None:
        labelled = set()
        for point in sweep.points:
            spot = (100 * point.over_refusal.value, 100 * (1 - point.attack_success.value))
            axes.scatter(*spot, color=_COLOURS["ssd"], alpha=0.35, s=18)
            if spot in labelled:  # several settings may come to the same
                continue
            labelled.add(spot)
            axes.annotate(
                f"$\\alpha_U$ {point.alpha_union}, $\\beta_0$ {point.match_threshold}, b {point.bin_size} "
                f"{point.signals}",
                spot,
                xytext=(4, -3),
                textcoords="offset points",
                fontsize=6,
            )
    axes.set(xlabel="harmless requests refused, %", ylabel="attacks withstood, %")
    axes.set(xlim=(-1, max(axes.get_xlim()[1] * 1.2, 10)), ylim=(-2, 102))
    axes.legend(frameon=False)
    return figure
