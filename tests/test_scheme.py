"""Scheme control, bin by bin."""

from __future__ import annotations

import random

import pytest
import reference

from ssd_engine import Scheme, SSDConfig
from ssd_engine.rule.scheme import SchemeController


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


@pytest.mark.parametrize("bin_size", [1, 7])
def test_a_threshold_that_has_decayed_to_zero_lets_a_bin_without_any_match_pass(bin_size: int) -> None:
    """Six times 0.1 off 0.6 is nothing, though in binary 2.8e-17 is left."""
    controller = SchemeController(SSDConfig(bin_size=bin_size))
    for _ in range(6):
        feed(controller, bin_size)
    assert controller.threshold == 0
    feed(controller, 0)
    assert controller.scheme is Scheme.INTERSECTION


@pytest.mark.parametrize(
    ("settings", "kept_bins", "matches"),
    [
        ({"bin_size": 5}, 4, 1),  # 0.6 - 4 x 0.1 against 1/5
        ({"bin_size": 10}, 3, 3),
        ({"bin_size": 2, "match_threshold": 0.9}, 4, 1),
        ({"bin_size": 4, "match_threshold": 0.95, "threshold_decay": 0.05}, 4, 3),
        ({"bin_size": 3, "match_threshold": 2 / 3}, 0, 2),
    ],
)
def test_a_ratio_at_a_threshold_that_has_decayed_is_no_risk(
    settings: dict[str, float], kept_bins: int, matches: int
) -> None:
    controller = SchemeController(SSDConfig(**settings))
    for _ in range(kept_bins):
        feed(controller, controller.config.bin_size)
    assert controller.threshold == pytest.approx(matches / controller.config.bin_size)
    feed(controller, matches)
    assert controller.scheme is Scheme.INTERSECTION


@pytest.mark.parametrize("seed", range(80))
def test_scheme_control_equals_the_rule_in_fractions(seed: int) -> None:
    """Schemes, weights, thresholds and ratios after each token, over 600 tokens that match more or less often."""
    rng = random.Random(seed)
    config = SSDConfig(
        bin_size=rng.choice([1, 2, 3, 5, 7, 10, 20]),
        alpha_intersection=rng.choice([0.3, 0.45, 0.7, 0.9, 1.2]),
        alpha_union=rng.choice([0.8, 2.0]),
        match_threshold=rng.choice([0.0, 0.3, 0.5, 0.6, 0.7, 0.9, 0.95, 1.0]),
        threshold_decay=rng.choice([0.0, 0.05, 0.1, 0.15, 0.3]),
        alpha_decay=rng.choice([0.0, 0.05, 0.1, 0.15]),
        alpha_intersection_min=rng.choice([0.0, 0.1, 0.3]),
    )
    controller, expected = SchemeController(config), reference.ReferenceScheme(config)
    bins = []
    for place in range(600):
        rate = (0.2, 0.6, 0.97)[place // 50 % 3]
        matched = rng.random() < rate
        upcoming = controller.upcoming_alphas(1)
        assert (controller.scheme, controller.alpha) == (expected.scheme, expected.alpha)
        assert controller.threshold == float(expected.threshold)
        assert controller.scheme is Scheme.UNION or controller.alpha in upcoming
        completed = controller.record(matched=matched)
        expected.record(matched=matched)
        bins += [completed] if completed else []
    assert [completed.ratio for completed in bins] == list(map(float, expected.ratios))


def test_a_decay_without_end_reaches_the_floor_at_once() -> None:
    controller = SchemeController(SSDConfig(bin_size=1, alpha_intersection=0.9, alpha_decay=float("inf")))
    assert controller.alpha == 0.9
    feed(controller, 1)
    assert controller.alpha == 0.3
