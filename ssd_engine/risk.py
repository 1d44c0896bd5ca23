"""What a request wants done about risk, as its bins are completed."""

from __future__ import annotations

import itertools

from ssd_engine.config import GenerationParams, RiskAction
from ssd_engine.errors import InvalidRequestError, JailbreakRiskError
from ssd_engine.scheme import Scheme
from ssd_engine.trace import SafetyTrace


def risk_action(params: GenerationParams, trace: SafetyTrace) -> RiskAction:
    """What is to be done at the end of a bin.

    Raises:
        InvalidRequestError: the caller's function returned none of the actions.
    """
    if isinstance(params.on_risk, str):
        return params.on_risk if _bins_under_union(trace) >= params.risk_bins else "annotate"
    action = params.on_risk(trace) or "annotate"
    if action not in ("annotate", "refuse", "raise"):
        raise InvalidRequestError(f"on_risk returned {action!r}; return 'annotate', 'refuse', 'raise' or None")
    return action


def risk_error(trace: SafetyTrace) -> JailbreakRiskError:
    """What a caller is told that wants risk to be raised; the text is still to be filled in."""
    ratios = ", ".join(f"{ratio:.2f}" for ratio in trace.match_ratios)
    return JailbreakRiskError(
        f"jailbreak risk: Union held for {_bins_under_union(trace)} bins (match ratios so far: {ratios}); the "
        "answer was stopped, its trace and text are in this error's `trace` and `text`",
        trace=trace,
        text="",
    )


def _bins_under_union(trace: SafetyTrace) -> int:
    """Completed bins, up to the last, that Union has held."""
    return sum(1 for _ in itertools.takewhile(lambda each: each.scheme is Scheme.UNION, reversed(trace.bins)))
