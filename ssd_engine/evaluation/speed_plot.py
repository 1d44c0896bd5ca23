"""The speed benchmark as a figure (extra `plot`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssd_engine.evaluation.speed_report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_figure(report: Report) -> Figure:
    """Tokens a second by requests at once, one line a contender, and by context length where that was measured."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "ssd-integrations[plot]"') from error
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row.name for row in report.rows):
        rows = [row for row in report.rows if row.name == name]
        left.plot([row.requests for row in rows], [row.tokens_per_second for row in rows], marker="o", label=name)
    left.set(xlabel="requests at once", ylabel="tokens/s, all together", ylim=(0, None))
    left.set_xticks(sorted({row.requests for row in report.rows}))
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    lengths = [row.prompt_tokens for row in report.contexts]
    right.plot(lengths, [row.tokens_per_second for row in report.contexts], marker="o")
    right.set(xlabel="tokens of prompt", ylabel="tokens/s of ssd while decoding", ylim=(0, None))
    return figure
