"""How a SafetyTrace is shown: HTML for notebooks, a matplotlib figure for reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from ssd_engine.config import Signal
from ssd_engine.rule.scheme import Scheme
from ssd_engine.trace.record import TraceRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Half-transparent or of middle brightness, so that they can be told apart on light and dark backgrounds.
_UNION, _INTERSECTION = "rgba(240,120,20,.38)", "rgba(50,140,220,.20)"
_RATIO, _THRESHOLD, _MISMATCH, _SPAN = "#3a8fd6", "#9a7fd1", "#e0483e", "#f07814"
_SIGNALS: dict[Signal, str] = {"refusal_mass": "#c2407e", "probe": "#2f9e75", "kl": "#8a7a20"}

_STYLE = f"""<style>
.ssd-trace {{color:inherit;max-width:60em}}
.ssd-trace .text {{white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;line-height:1.7;margin:.6em 0}}
.ssd-trace .{Scheme.UNION} {{background:{_UNION}}}
.ssd-trace .{Scheme.INTERSECTION} {{background:{_INTERSECTION}}}
.ssd-trace .mismatch {{text-decoration:underline 2px {_MISMATCH};text-underline-offset:3px}}
.ssd-trace .figures, .ssd-trace .legend {{font-size:90%}}
.ssd-trace .legend span {{padding:0 .3em;margin-right:.6em}}
.ssd-trace svg {{display:block;width:100%;max-width:40em;margin-top:.6em}}
</style>"""

# The plot's area inside its 640 x 170 picture.
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 630.0, 12.0, 132.0


def to_html(trace: TraceRecord) -> str:
    """`trace` as HTML: summary, legend, text coloured by scheme, match ratio and risk against thresholds. No scripts.

    A token's risk shows where the pointer rests on it.
    """
    spans = (f'<span class="{css}"{title}>{escape(text)}</span>' for css, text, title in _marked_texts(trace))
    text = "".join(spans)
    # The two ..._ignore classes keep notebooks from typesetting dollar signs in the text as formulas.
    return (
        f'{_STYLE}<div class="ssd-trace tex2jax_ignore mathjax_ignore">'
        f'<div class="figures">{escape(" · ".join(_figures(trace)))}</div>'
        f'{_legend(trace)}<div class="text">{text}</div>{_svg(trace) if trace.bins else ""}'
        f"{_risk_svg(trace) if trace.risk_scores else ''}</div>"
    )


def to_figure(trace: TraceRecord) -> Figure:
    """`trace` as a matplotlib figure: match ratio and threshold of each bin, Union shaded.

    Where signals are used, each one's score before each token and its threshold (dotted) are drawn too; those over a
    given beginning stand at negative tokens, the highest of each place.

    Raises `ImportError` where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError(
            'SafetyTrace.plot() needs matplotlib, which is not installed: pip install "ssd-integrations[plot]"'
        ) from error
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    axes = figure.subplots()
    edges = [0, *trace.bin_ends]
    for number, (start, end) in enumerate(_union_spans(trace)):
        axes.axvspan(start, end, color=_SPAN, alpha=0.25, linewidth=0, label="Union" if number == 0 else None)
    if trace.bins:
        axes.stairs(trace.thresholds, edges, baseline=None, color=_THRESHOLD, linestyle="--", label="threshold")
        axes.stairs(trace.match_ratios, edges, baseline=None, color=_RATIO, linewidth=2, label="match ratio")
    if trace.beginning_scores:
        places = range(-len(trace.beginning_scores), 0)
        axes.plot(places, trace.beginning_scores, color="gray", linewidth=1, label="risk of the beginning")
    for signal, scores in trace.signal_scores.items():
        axes.plot(scores, color=_SIGNALS[signal], linewidth=1, label=signal)
        axes.axhline(trace.signal_thresholds[signal], color=_SIGNALS[signal], linestyle=":", linewidth=1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.set(
        xlim=(-len(trace.beginning_scores), max(len(trace.schemes), edges[-1], 1)),
        ylim=(-0.03, 1.03),
        xlabel=f"tokens (bins of {trace.bin_size})",
        ylabel="match ratio, risk" if trace.risk_scores else "match ratio",
        title=" · ".join(_figures(trace)[:4]),
    )
    axes.title.set_fontsize("medium")
    return figure


def _marked_texts(trace: TraceRecord) -> Iterator[tuple[str, str, str]]:
    """CSS classes, text and title of each token; tokens that add no text of their own go with the next that does."""
    mismatch, risk = False, 0.0
    risks = trace.risk_scores or [0.0] * len(trace.schemes)
    tokens = zip(trace.schemes, trace.matched, trace.forced, trace.texts, risks, strict=True)
    for scheme, matched, forced, text, own_risk in tokens:
        mismatch |= _is_drafted(trace) and not (matched or forced)
        risk = max(risk, own_risk)
        if text:
            title = f' title="risk {risk:.2f}"' if trace.risk_scores else ""
            yield f"{scheme} mismatch" if mismatch else str(scheme), text, title
            mismatch, risk = False, 0.0


def _is_drafted(trace: TraceRecord) -> bool:
    return trace.decoding != "target"


def _is_ssd(trace: TraceRecord) -> bool:
    return trace.decoding == "ssd"


def _figures(trace: TraceRecord) -> list[str]:
    """The summary, figure by figure, leaving out what the decoding has none of."""
    figures = [f"{trace.decoding}, {_counted(len(trace.schemes), 'token')}"]
    if _is_ssd(trace):
        figures.append(f"risk {trace.risk}")
    if _is_drafted(trace):
        figures.append(f"match rate {trace.match_rate:.2f}")
    if _is_ssd(trace):
        figures += [f"Union share {trace.union_share:.0%}", _counted(trace.switches, "switch", "switches")]
    if trace.signal_thresholds:
        figures += [_counted(len(trace.alarms), "alarm"), f"highest risk {trace.max_risk:.2f}"]
    return [*figures, _counted(trace.rounds, "round"), f"{trace.tokens_per_round:.2f} tokens a round"]


def _counted(count: int, singular: str, plural: str = "") -> str:
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def _legend(trace: TraceRecord) -> str:
    entries = []
    if _is_ssd(trace):
        entries += [(str(Scheme.INTERSECTION), "Intersection (utility)"), (str(Scheme.UNION), "Union (safety)")]
    if _is_drafted(trace):
        entries.append(("mismatch", "not the drafted token"))
    marks = "".join(f'<span class="{css}">{label}</span>' for css, label in entries)
    return f'<div class="legend">{marks}</div>' if marks else ""


def _union_spans(trace: TraceRecord) -> list[tuple[int, int]]:
    """First token, and token after the last, of each stretch under Union."""
    runs = groupby(range(len(trace.schemes)), key=lambda i: trace.schemes[i])
    stretches = [list(tokens) for scheme, tokens in runs if scheme is Scheme.UNION]
    return [(stretch[0], stretch[-1] + 1) for stretch in stretches]


def _svg(trace: TraceRecord) -> str:
    """Match ratio against threshold, each bin a step, over the answer's tokens."""
    tokens = max(len(trace.schemes), *trace.bin_ends)
    scale = (_RIGHT - _LEFT) / tokens
    ends = [_LEFT + end * scale for end in trace.bin_ends]
    return (
        '<svg viewBox="0 0 640 170" role="img" font-size="11" fill="currentColor">'
        "<title>Match ratio and threshold of each bin</title>"
        f"{_shaded(trace, _LEFT, scale)}{_axes(0, tokens)}"
        f'<path d="{_steps(trace.thresholds, ends)}" fill="none" stroke="{_THRESHOLD}" '
        'stroke-width="2" stroke-dasharray="6 3"/>'
        f'<path d="{_steps(trace.match_ratios, ends)}" fill="none" stroke="{_RATIO}" '
        f'stroke-width="2"/>{_keys(trace.bin_size)}</svg>'
    )


def _risk_svg(trace: TraceRecord) -> str:
    """Each signal's score and threshold before each token; those over a given beginning left of token 0."""
    given = len(trace.beginning_scores)
    scale = (_RIGHT - _LEFT) / (given + len(trace.risk_scores))
    begin = _LEFT + given * scale
    lines = [f'<path d="{_line(trace.beginning_scores, _LEFT, scale)}" fill="none" stroke="gray"/>'] if given else []
    keys = []
    for number, (signal, scores) in enumerate(trace.signal_scores.items()):
        colour, at = _SIGNALS[signal], _height(trace.signal_thresholds[signal])
        lines.append(f'<path d="{_line(scores, begin, scale)}" fill="none" stroke="{colour}"/>')
        lines.append(f'<path d="M{_LEFT} {at:.1f}H{_RIGHT}" stroke="{colour}" stroke-dasharray="2 3"/>')
        x, y = _LEFT + 160 * number, _BOTTOM + 31
        keys.append(f'<path d="M{x} {y - 4}h24" stroke="{colour}"/><text x="{x + 30}" y="{y}">{signal}</text>')
    return (
        '<svg viewBox="0 0 640 170" role="img" font-size="11" fill="currentColor">'
        "<title>Risk before each token, and thresholds</title>"
        f"{_shaded(trace, begin, scale)}{_axes(-given, len(trace.risk_scores))}{''.join(lines)}{''.join(keys)}</svg>"
    )


def _line(values: Sequence[float], begin: float, scale: float) -> str:
    """A path through the values, one a token."""
    return "M" + "L".join(f"{begin + place * scale:.1f} {_height(value):.1f}" for place, value in enumerate(values))


def _height(value: float) -> float:
    return _BOTTOM - value * (_BOTTOM - _TOP)


def _shaded(trace: TraceRecord, begin: float, scale: float) -> str:
    """Boxes behind what Union has chosen; token 0 is at `begin`."""
    return "".join(
        f'<rect x="{begin + start * scale:.1f}" y="{_TOP}" width="{(end - start) * scale:.1f}" '
        f'height="{_BOTTOM - _TOP}" fill="{_SPAN}" opacity=".25"/>'
        for start, end in _union_spans(trace)
    )


def _steps(values: Sequence[float], ends: Sequence[float]) -> str:
    """A path that holds each value up to where its bin ends."""
    heights = [_height(value) for value in values]
    steps = (f"V{height:.1f}H{end:.1f}" for height, end in zip(heights, ends, strict=True))
    return f"M{_LEFT} {heights[0]:.1f}{''.join(steps)}"


def _axes(first: int, tokens: int) -> str:
    grid = "".join(
        f'<path d="M{_LEFT} {y}H{_RIGHT}" stroke="currentColor" opacity=".25"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{label}</text>'
        for y, label in ((_TOP, "1"), ((_TOP + _BOTTOM) / 2, "0.5"), (_BOTTOM, "0"))
    )
    return (
        f'{grid}<text x="{_LEFT}" y="{_BOTTOM + 16}">{first}</text>'
        f'<text x="{_RIGHT}" y="{_BOTTOM + 16}" text-anchor="end">{tokens} tokens</text>'
    )


def _keys(bin_size: int) -> str:
    """What the lines are, under the plot."""
    y = _BOTTOM + 31
    return (
        f'<path d="M{_LEFT} {y - 4}h24" stroke="{_RATIO}" stroke-width="2"/>'
        f'<text x="{_LEFT + 30}" y="{y}">match ratio of {bin_size} tokens</text>'
        f'<path d="M{_LEFT + 200} {y - 4}h24" stroke="{_THRESHOLD}" stroke-width="2" stroke-dasharray="6 3"/>'
        f'<text x="{_LEFT + 230}" y="{y}">threshold</text>'
        f'<rect x="{_LEFT + 310}" y="{y - 10}" width="24" height="12" fill="{_SPAN}" opacity=".25"/>'
        f'<text x="{_LEFT + 340}" y="{y}">Union</text>'
    )
