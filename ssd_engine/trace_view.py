"""How a trace is shown: as HTML in notebooks, and as a figure."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from ssd_engine.scheme import Scheme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssd_engine.trace import SafetyTrace

# Half-transparent, so that they read on light and on dark notebook pages.
_COLOURS = {
    Scheme.INTERSECTION: "rgba(66,133,244,.18)",
    Scheme.UNION: "rgba(244,81,30,.35)",
    Scheme.NONE: "transparent",
}
_MISMATCH = "text-decoration:underline;text-decoration-color:#d93025;text-decoration-thickness:2px"
_RATIO, _THRESHOLD = "#1a73e8", "#d93025"
_WIDTH, _HEIGHT, _MARGIN = 480, 120, 16


def to_html(trace: SafetyTrace) -> str:
    """Tokens coloured by scheme, mismatches underlined, and a line of match ratio against threshold."""
    figures = " · ".join(
        [
            f"risk <b>{trace.risk}</b>",
            f"match rate {trace.match_rate:.2f}",
            f"Union {trace.union_share:.0%}",
            f"{trace.switches} switches",
            f"{trace.rounds} rounds",
            f"{trace.tokens_per_round:.2f} tokens a round",
        ]
    )
    legend = " ".join(f'<span style="background:{_COLOURS[s]}">{s}</span>' for s in (Scheme.INTERSECTION, Scheme.UNION))
    tokens = "".join(map(_token, trace.texts, trace.schemes, trace.matched))
    return (
        f'<div style="font-family:sans-serif"><div>{figures}</div>'
        f'<div>{legend} <span style="{_MISMATCH}">not the drafted token</span></div>'
        f'<div style="white-space:pre-wrap;font-family:monospace;margin:.5em 0">{tokens}</div>{_chart(trace)}</div>'
    )


def _token(text: str, scheme: Scheme, matched: bool) -> str:
    mark = "" if matched or scheme is Scheme.NONE else f";{_MISMATCH}"
    return f'<span style="background:{_COLOURS[scheme]}{mark}">{escape(text)}</span>'


def _chart(trace: SafetyTrace) -> str:
    """An inline SVG; empty before the first bin is complete."""
    if not trace.bins:
        return ""
    ratio = _polyline(trace.match_ratios, _RATIO, "")
    threshold = _polyline(trace.thresholds, _THRESHOLD, ' stroke-dasharray="5 4"')
    labels = (
        f'<text x="{_MARGIN}" y="12" fill="{_RATIO}" font-size="11">match ratio of each bin</text>'
        f'<text x="{_MARGIN + 150}" y="12" fill="{_THRESHOLD}" font-size="11">threshold</text>'
    )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{labels}{threshold}{ratio}</svg>'


def _polyline(values: list[float], colour: str, dashes: str) -> str:
    step = (_WIDTH - 2 * _MARGIN) / max(len(values) - 1, 1)
    points = [
        (_MARGIN + i * step, _HEIGHT - _MARGIN - value * (_HEIGHT - 2 * _MARGIN)) for i, value in enumerate(values)
    ]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>{dots}'


def to_figure(trace: SafetyTrace) -> Figure:
    """Match ratio and threshold of each bin over the tokens, spans under Union shaded.

    Raises:
        ImportError: matplotlib is missing; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "ssd-integrations[plot]"') from error
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    start = 0
    for scheme, run in groupby(trace.schemes):
        end = start + len(list(run))
        if scheme is Scheme.UNION:
            axes.axvspan(start, end, color="tab:orange", alpha=0.2, lw=0)
        start = end
    ends = [trace.bin_size * (i + 1) for i in range(len(trace.bins))]
    axes.plot(ends, trace.match_ratios, marker="o", color="tab:blue", label="match ratio of the bin")
    axes.plot(ends, trace.thresholds, linestyle="--", color="tab:red", label="threshold")
    axes.set(xlabel="tokens", ylabel="match ratio", ylim=(-0.05, 1.05), xlim=(0, max(len(trace.schemes), 1)))
    axes.set_title(f"risk: {trace.risk} (Union shaded: {trace.union_share:.0%} of the tokens)")
    axes.legend(loc="lower left", fontsize="small")
    return figure
