"""SafetyTrace: its figures, and how it is shown in notebooks and plots."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from xml.etree import ElementTree

import pytest

from ssd_engine.config import SSDConfig
from ssd_engine.rule.scheme import Scheme, SchemeController
from ssd_engine.rule.signals import Look
from ssd_engine.trace.safety_trace import SafetyTrace


def make_trace(matches: str, texts: list[str] | None = None, bin_size: int = 2) -> SafetyTrace:
    """The trace of an answer whose tokens match ("+") or not ("-"), in rounds that end at each mismatch."""
    trace = SafetyTrace(bin_size=bin_size, texts=texts or [f"t{i} " for i in range(len(matches))])
    controller = SchemeController(SSDConfig(bin_size=bin_size))
    for match in matches:
        trace.schemes.append(controller.scheme)
        trace.matched.append(match == "+")
        trace.forced.append(False)
        completed = controller.record(matched=match == "+")
        if completed is not None:
            trace.bins.append(completed)
            trace.bin_ends.append(len(trace.matched))
    trace.round_sizes = [len(round_) for round_ in re.findall(r"\+*-|\++", matches)]
    return trace


def make_baseline(decoding: str) -> SafetyTrace:
    return SafetyTrace(
        decoding, [Scheme.NONE] * 3, [False] * 3, ["a", "b", "c"], round_sizes=[1] * 3, forced=[False] * 3
    )


ATTACK = make_trace("++" + "--" + "--" + "++" + "+-" + "+")


def test_the_figures_of_an_answer_that_was_an_attack() -> None:
    assert [str(scheme)[0] for scheme in ATTACK.schemes] == [*"iiiiuuuuiiu"]
    assert ATTACK.match_ratios == [1.0, 0.0, 0.0, 1.0, 0.5]
    assert ATTACK.thresholds == pytest.approx([0.6, 0.5, 0.6, 0.5, 0.6])
    assert ATTACK.match_rate == pytest.approx(6 / 11)
    assert ATTACK.union_share == pytest.approx(5 / 11)
    assert ATTACK.switches == 3
    assert ATTACK.risk == "elevated"


def test_the_figures_of_an_ordinary_answer() -> None:
    trace = make_trace("++++++")
    assert (trace.risk, trace.switches, trace.union_share, trace.match_rate) == ("none", 0, 0.0, 1.0)
    assert trace.thresholds == pytest.approx([0.6, 0.5, 0.4])


def test_risk_is_elevated_as_soon_as_a_bin_calls_for_union_also_at_the_last_token() -> None:
    trace = make_trace("++--")
    assert trace.union_share == 0.0
    assert trace.risk == "elevated"


def test_rounds_and_tokens_a_round() -> None:
    trace = SafetyTrace(round_sizes=[3, 1, 2])
    assert (trace.rounds, trace.tokens_per_round) == (3, 2.0)


def test_an_answer_without_tokens_has_figures_too() -> None:
    trace = SafetyTrace()
    assert (trace.match_rate, trace.union_share, trace.tokens_per_round, trace.rounds) == (0.0, 0.0, 0.0, 0)
    assert (trace.risk, trace.match_ratios) == ("none", [])
    assert "0 tokens" in visible(trace)[0]


def test_the_summary_is_ready_for_json() -> None:
    summary = json.loads(json.dumps(ATTACK.summary()))
    assert summary == {
        "decoding": "ssd",
        "risk": "elevated",
        "match_rate": 0.5455,
        "match_ratios": [1.0, 0.0, 0.0, 1.0, 0.5],
        "thresholds": [0.6, 0.5, 0.6, 0.5, 0.6],
        "union_share": 0.4545,
        "switches": 3,
        "rounds": 6,
        "tokens_per_round": 1.8333,
        "forced_tokens": 0,
    }


class Page(HTMLParser):
    """What a reader of a page sees: the tokens with their classes, and everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self.other = ""
        self._classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("div", "span"):
            self._classes.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("div", "span"):
            self._classes.pop()

    def handle_data(self, data: str) -> None:
        if self._classes[-2:-1] == ["text"]:
            self.tokens.append((self._classes[-1], data))
        elif self._classes:
            self.other += f"{data}\n"


def read(trace: SafetyTrace) -> Page:
    page = Page()
    page.feed(trace._repr_html_())
    page.close()
    return page


def visible(trace: SafetyTrace) -> tuple[str, list[tuple[str, str]]]:
    page = read(trace)
    return page.other, page.tokens


def test_tokens_are_coloured_by_scheme_and_mismatches_marked() -> None:
    _, tokens = visible(make_trace("++--+-"))
    assert tokens == [
        ("intersection", "t0 "),
        ("intersection", "t1 "),
        ("intersection mismatch", "t2 "),
        ("intersection mismatch", "t3 "),
        ("union", "t4 "),
        ("union mismatch", "t5 "),
    ]


def test_the_mismatch_of_a_token_without_text_is_marked_at_the_character_it_belongs_to() -> None:
    _, tokens = visible(make_trace("+-+++", ["a", "", "", "🦊", "b"], bin_size=5))
    assert tokens == [("intersection", "a"), ("intersection mismatch", "🦊"), ("intersection", "b")]


def test_token_text_is_shown_as_written_and_never_as_markup() -> None:
    texts = ["<script>alert(1)</script>", "\n\n", "  a &amp; b", "</span></div>", "'\">", "$x$"]
    page = read(make_trace("++++++", texts))
    assert [text for _, text in page.tokens] == texts
    assert "script" not in page.tags


def test_summary_and_legend_are_shown() -> None:
    other, _ = visible(ATTACK)
    for figure in (
        "11 tokens",
        "risk elevated",
        "match rate 0.55",
        "Union share 45%",
        "3 switches",
        "Intersection",
        "Union",
    ):
        assert figure in other


@pytest.mark.parametrize("decoding", ["target", "speculative"])
def test_a_baseline_shows_only_what_it_has(decoding: str) -> None:
    trace = make_baseline(decoding)
    other, tokens = visible(trace)
    assert "Union" not in other
    assert "risk" not in other
    assert ("match rate" in other) is (decoding == "speculative")
    assert tokens == [("none mismatch" if decoding == "speculative" else "none", text) for text in "abc"]
    assert "svg" not in read(trace).tags


def test_match_ratio_is_drawn_against_threshold() -> None:
    html = ATTACK._repr_html_()
    svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + len("</svg>")])
    threshold, ratio = (path.get("d", "") for path in svg.findall("path") if "V" in path.get("d", ""))
    # Each bin is one step; 1 is drawn at the top of the plot (12) and 0 at its bottom (132).
    assert [step.split("H")[0] for step in ratio.split("V")[1:]] == ["12.0", "132.0", "132.0", "12.0", "72.0"]
    assert [step.split("H")[0] for step in threshold.split("V")[1:]] == ["60.0", "72.0", "60.0", "72.0", "60.0"]


def test_the_plot_has_both_lines_and_shades_union() -> None:
    figure = ATTACK.plot()
    [axes] = figure.axes
    drawn = {patch.get_label(): patch for patch in axes.patches}
    assert {"threshold", "match ratio", "Union"} <= drawn.keys()
    values, edges, _ = drawn["match ratio"].get_data()
    assert (list(values), list(edges)) == (ATTACK.match_ratios, [0, 2, 4, 6, 8, 10])
    assert list(drawn["threshold"].get_data().values) == ATTACK.thresholds
    shaded = [(patch.get_x(), patch.get_width()) for patch in axes.patches if hasattr(patch, "get_x")]
    assert shaded == [(4, 4), (10, 1)]
    figure.savefig(BytesIO(), format="png")


def make_heard() -> SafetyTrace:
    """An answer of four tokens, one of them forced, after a beginning of two, with two signals."""
    trace = SafetyTrace(bin_size=9, texts=["a", "b", "", "c"], signal_thresholds={"refusal_mass": 0.5, "probe": 0.25})
    trace.begin([Look({"refusal_mass": 0.125, "probe": 0.0}), Look({"refusal_mass": 0.0, "probe": 0.3}, ("probe",))])
    for mass, probe, raised in ((0.0, 0.1, ()), (0.75, 0.5, ("refusal_mass", "probe")), (0.2, 0.3, ())):
        trace.look(Look({"refusal_mass": mass, "probe": probe}, raised))
    trace.look(None)
    trace.schemes = [Scheme.INTERSECTION, Scheme.UNION, Scheme.UNION, Scheme.UNION]
    trace.matched, trace.forced, trace.round_sizes = [True] * 4, [False] * 3 + [True], [4]
    return trace


def test_the_figures_of_signals() -> None:
    trace = make_heard()
    assert trace.risk_scores == [0.1, 0.75, 0.3, 0.0]
    assert trace.beginning_scores == [0.125, 0.3]
    assert trace.signal_scores == {"refusal_mass": [0.0, 0.75, 0.2, 0.0], "probe": [0.1, 0.5, 0.3, 0.0]}
    assert [(alarm.place, alarm.signal) for alarm in trace.alarms] == [(-1, "probe"), (1, "refusal_mass"), (1, "probe")]
    assert (trace.risk, trace.switches) == ("elevated", 1)
    summary = json.loads(json.dumps(trace.summary()))
    assert (summary["alarms"], summary["max_risk"]) == (3, 0.75)


def test_risk_is_shown_with_its_thresholds() -> None:
    html = make_heard()._repr_html_()
    assert re.findall(r'title="risk (.+?)">(.)', html) == [("0.10", "a"), ("0.75", "b"), ("0.30", "c")]
    assert "3 alarms" in html
    svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + len("</svg>")])
    lines = {path.get("stroke"): path.get("d", "") for path in svg.findall("path") if "L" in path.get("d", "")}
    assert [points.count("L") for points in lines.values()] == [1, 3, 3]
    assert [text.text for text in svg.findall("text")][-2:] == ["refusal_mass", "probe"]


def test_the_plot_has_risk_with_its_thresholds() -> None:
    [axes] = make_heard().plot().axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["probe"] == [0.1, 0.5, 0.3, 0.0]
    assert drawn["risk of the beginning"] == [0.125, 0.3]
    assert [0.25, 0.25] in drawn.values()
    assert axes.get_xlim() == (-2, 4)


@pytest.mark.parametrize("trace", [SafetyTrace(), make_trace("+"), make_baseline("target")])
def test_an_answer_without_bins_can_be_plotted(trace: SafetyTrace) -> None:
    trace.plot().savefig(BytesIO(), format="png")


def test_plotting_leaves_pyplot_alone() -> None:
    code = "import sys; from ssd_engine import SafetyTrace; SafetyTrace().plot(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "matplotlib.figure" in loaded
    assert "matplotlib.pyplot" not in loaded


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "ssd-integrations\[plot\]"'):
        ATTACK.plot()
