"""SafetyTrace: the record of an answer, and how it shows itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssd_engine.trace.record import TraceRecord
from ssd_engine.trace.view import to_figure, to_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SafetyTrace(TraceRecord):
    """The record of one answer. In a notebook it shows itself as a coloured text and a plot."""

    def _repr_html_(self) -> str:
        return to_html(self)

    def plot(self) -> Figure:
        """Match ratio against threshold, bin by bin, as a matplotlib figure (extra `plot`)."""
        return to_figure(self)
