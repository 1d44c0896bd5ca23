"""The rule by which signals ask for Union, and the settings that it takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_engine import SSDConfig
from ssd_engine.config import SIGNALS, SignalConfig
from ssd_engine.errors import InvalidRequestError
from ssd_engine.rule.signals import Look, SignalControl


def walk(control: SignalControl, scores: list[float], token_ids: list[int] | None = None) -> str:
    """Where Union is asked for ("u") at places with these scores of the probe."""
    asked = ""
    for score, token_id in zip(scores, token_ids or [0] * len(scores), strict=True):
        control.look({"probe": score})
        asked += "u" if control.asks_for_union else "-"
        control.leave(token_id)
    return asked


def test_an_alarm_holds_for_its_own_place_and_those_after_it() -> None:
    for hold, expected in ((1, "-u------"), (3, "-uuu----"), (9, "-uuuuuuu")):
        assert walk(SignalControl(SignalConfig(probe=0.5, hold=hold)), [0, 0.5, 0, 0, 0, 0, 0, 0]) == expected


def test_a_later_alarm_prolongs_what_an_earlier_one_asked_for() -> None:
    control = SignalControl(SignalConfig(probe=0.5, hold=3))
    assert walk(control, [0.9, 0, 0.7, 0, 0, 0]) == "uuuuu-"


def test_a_refusal_that_begins_under_an_alarm_is_finished_under_union() -> None:
    for place, expected in ((1, "-uu----"), (2, "-uuuuuu"), (3, "-uu----")):
        control = SignalControl(SignalConfig(probe=0.5, hold=2), refusal_ids={7})
        token_ids = [7 if here == place else 0 for here in range(7)]
        if place == 1:
            token_ids[0:2] = [7, 0]  # nothing is wrong yet: a word is no refusal
        assert walk(control, [0, 0.5, 0, 0, 0, 0, 0], token_ids) == expected


def test_smoothing_passes_over_a_single_score_and_not_over_a_run_of_them() -> None:
    spike, run = [0, 0, 0.9, 0, 0, 0], [0, 0.9, 0.9, 0.9, 0.9, 0]
    for smoothing, scores, expected in ((1, spike, "--u---"), (2, spike, "------"), (2, run, "--uuu-")):
        assert walk(SignalControl(SignalConfig(probe=0.5, hold=1, smoothing=smoothing)), scores) == expected


def test_an_alarm_in_a_beginning_holds_to_the_answers_first_place_where_it_is_latched() -> None:
    for latch, expected in ((False, "------"), (True, "uuu---")):
        control = SignalControl(SignalConfig(probe=0.5, hold=3, latch=latch))
        for score in (0, 0.9, 0, 0, 0, 0, 0, 0):
            control.look({"probe": score})
            control.leave_given(0.0)
        assert walk(control, [0, 0, 0, 0, 0, 0]) == expected


def test_the_draft_is_surest_to_break_off_where_it_does_so_likelier_than_before_and_than_not() -> None:
    masses = [0.2, 0.5, 0.6, 0.6, 0.4, 0.9, 0.7]
    for latch, expected in ((True, [False, False, True, False, False, True, False]), (False, [False] * 7)):
        control = SignalControl(SignalConfig(probe=0.5, latch=latch))
        assert [control.leave_given(mass) for mass in masses] == expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_without_smoothing_scores_are_compared_as_they_are(scores: list[float]) -> None:
    control = SignalControl(SignalConfig(probe=0.5))
    for score in scores:
        assert control.look({"probe": score}).scores == {"probe": score}


def test_the_first_place_is_compared_as_it_is_however_scores_are_smoothed() -> None:
    control = SignalControl(SignalConfig(probe=0.5, hold=1, smoothing=4))
    assert control.look({"probe": 0.8}) == Look({"probe": 0.8}, ("probe",))
    assert control.look({}) == Look({})  # a signal that gives nothing leaves its mean as it is
    assert control.look({"probe": 0.0}).scores == {"probe": pytest.approx(0.6)}


def test_only_what_makes_union_asked_for_counts_as_raised() -> None:
    control = SignalControl(SignalConfig(probe=0.5, kl=0.5, hold=2))
    raised = []
    for probe, kl in ((0, 0.5), (0.6, 0.6), (0, 0), (0, 0), (0.6, 0.7)):
        raised.append(control.look({"probe": probe, "kl": kl}).raised)
        control.leave(0)
    assert raised == [("kl",), (), (), (), ("probe", "kl")]


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), True, "high"])
def test_a_threshold_outside_its_range_is_refused(signal: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"signals.*{signal}"):
        SSDConfig(signals={signal: value})


@pytest.mark.parametrize("settings", [{}, {"hold": 4}, {"probe": None}, {"probe": 0.5, "hold": 0}, {"mass": 0.5}])
def test_signals_without_use_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="signals"):
        SSDConfig(signals=settings)
