"""Scheme control, bin by bin."""

from __future__ import annotations

import pytest

from ssd_engine import Scheme, SSDConfig
from ssd_engine.scheme import SchemeController


def feed(controller: SchemeController, matches: int) -> None:
    """One bin with so many matches."""
    for i in range(controller.config.bin_size):
        controller.record(matched=i < matches)


def test_a_bin_below_the_threshold_switches_to_union_and_a_good_one_back() -> None:
    controller = SchemeController(SSDConfig(bin_size=5))
    feed(controller, 2)
    assert (controller.scheme, controller.alpha) == (Scheme.UNION, 0.8)
    feed(controller, 4)
    assert (controller.scheme, controller.alpha) == (Scheme.INTERSECTION, 0.3)


def test_a_ratio_at_the_threshold_is_no_risk() -> None:
    controller = SchemeController(SSDConfig(bin_size=5, match_threshold=0.6))
    feed(controller, 3)
    assert controller.scheme is Scheme.INTERSECTION


def test_threshold_and_alpha_decay_while_intersection_lasts_and_return_at_a_switch() -> None:
    controller = SchemeController(SSDConfig(bin_size=5, alpha_intersection=0.7))
    feed(controller, 5)
    feed(controller, 5)
    assert controller.threshold == pytest.approx(0.4)
    assert controller.alpha == pytest.approx(0.4)
    feed(controller, 5)
    assert controller.alpha == pytest.approx(0.3)
    feed(controller, 0)
    assert (controller.scheme, controller.threshold) == (Scheme.UNION, 0.6)
    feed(controller, 0)
    assert controller.threshold == pytest.approx(0.5)
    feed(controller, 5)
    assert (controller.scheme, controller.threshold, controller.alpha) == (Scheme.INTERSECTION, 0.6, 0.7)


def test_the_threshold_does_not_fall_below_zero() -> None:
    controller = SchemeController(SSDConfig(bin_size=1, threshold_decay=0.4))
    for _ in range(5):
        feed(controller, 1)
    assert controller.threshold == 0.0


def test_the_bin_that_a_token_completes_is_reported() -> None:
    controller = SchemeController(SSDConfig(bin_size=2))
    assert controller.record(matched=False) is None
    completed = controller.record(matched=True)
    assert completed is not None
    assert (completed.ratio, completed.threshold, completed.is_switch) == (0.5, 0.6, True)
