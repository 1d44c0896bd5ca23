"""What a trace tells, and how it shows itself."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ssd_engine import SafetyTrace, Scheme
from ssd_engine.scheme import Bin

I, U = Scheme.INTERSECTION, Scheme.UNION  # noqa: E741


@pytest.fixture
def trace() -> SafetyTrace:
    """Two bins in Intersection, the second bad; one in Union, good again; one token more."""
    return SafetyTrace(
        schemes=[I] * 4 + [U] * 2 + [I],
        matched=[True, True, False, False, True, True, True],
        texts=["<b>", " a\n", "&", "é", "🙂", "", " end"],
        bins=[Bin(1.0, 0.6, I, I), Bin(0.0, 0.5, I, U), Bin(1.0, 0.6, U, I)],
        bin_size=2,
        round_sizes=[3, 1, 3],
    )


def test_figures(trace: SafetyTrace) -> None:
    assert trace.summary() == {
        "decoding": "ssd",
        "risk": "elevated",
        "match_rate": 0.7143,
        "match_ratios": [1.0, 0.0, 1.0],
        "thresholds": [0.6, 0.5, 0.6],
        "union_share": 0.2857,
        "switches": 2,
        "rounds": 3,
        "tokens_per_round": 2.3333,
    }


def test_an_answer_that_stays_in_intersection_has_no_risk() -> None:
    assert SafetyTrace(schemes=[I, I], matched=[True, True], bins=[Bin(1.0, 0.6, I, I)]).risk == "none"
    assert SafetyTrace().summary()["risk"] == "none"


def test_html_shows_every_token_escaped_and_coloured(trace: SafetyTrace) -> None:
    html = trace._repr_html_()
    spans = [span for span in ET.fromstring(html).iter("span") if (span.text or "") in trace.texts]
    assert [span.text or "" for span in spans] == trace.texts
    colours = {
        scheme: {s.get("style", "").split(";")[0] for s, c in zip(spans, trace.schemes, strict=True) if c is scheme}
        for scheme in (I, U)
    }
    assert all(len(found) == 1 for found in colours.values())
    assert colours[I] != colours[U]
    assert ["underline" in span.get("style", "") for span in spans] == [not match for match in trace.matched]
    assert "<script" not in html
    assert "<b>elevated</b>" in html


def test_html_draws_ratio_and_threshold_of_each_bin(trace: SafetyTrace) -> None:
    lines = list(ET.fromstring(trace._repr_html_()).iter("polyline"))
    assert [len(line.get("points", "").split()) for line in lines] == [3, 3]
    assert "svg" not in SafetyTrace()._repr_html_()


def test_the_figure_draws_ratio_and_threshold(trace: SafetyTrace, tmp_path: Path) -> None:
    figure = trace.plot()
    ratio, threshold = figure.axes[0].get_lines()
    assert list(ratio.get_ydata()) == trace.match_ratios
    assert list(threshold.get_ydata()) == trace.thresholds
    assert list(ratio.get_xdata()) == [2, 4, 6]
    figure.savefig(tmp_path / "trace.png")
    assert (tmp_path / "trace.png").stat().st_size > 1000


def test_a_missing_matplotlib_names_the_extra() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from ssd_engine import SafetyTrace; SafetyTrace().plot()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "ssd-integrations[plot]"' in done.stderr
