"""What a request wants done about risk, as its bins are completed and its signals raise alarms."""

from __future__ import annotations

import itertools

from ssd_engine.config import GenerationParams, RiskAction
from ssd_engine.errors import InvalidRequestError, JailbreakRiskError
from ssd_engine.rule.scheme import Scheme
from ssd_engine.trace.safety_trace import SafetyTrace


def risk_action(params: GenerationParams, trace: SafetyTrace) -> RiskAction:
    """What is to be done at the end of a bin, or where a signal has raised an alarm.

    Raises:
        InvalidRequestError: the caller's function returned none of the actions.
    """
    if isinstance(params.on_risk, str):
        if params.on_risk == "annotate":
            return "annotate"
        return params.on_risk if _tokens_under_union(trace) >= params.risk_bins * trace.bin_size else "annotate"
    action = params.on_risk(trace) or "annotate"
    if action not in ("annotate", "refuse", "raise"):
        raise InvalidRequestError(f"on_risk returned {action!r}; return 'annotate', 'refuse', 'raise' or None")
    return action


def risk_error(trace: SafetyTrace) -> JailbreakRiskError:
    """What a caller is told that wants risk to be raised; the text is still to be filled in."""
    ratios = ", ".join(f"{ratio:.2f}" for ratio in trace.match_ratios)
    alarms = ", ".join(f"{each.signal} {each.score:.2f} at token {each.place}" for each in trace.alarms)
    said = f"match ratios so far: {ratios}" + (f"; alarms: {alarms}" if alarms else "")
    return JailbreakRiskError(
        f"jailbreak risk: Union held for {_tokens_under_union(trace) // trace.bin_size} bins ({said}); the "
        "answer was stopped, its trace and text are in this error's `trace` and `text`",
        trace=trace,
        text="",
    )


def _tokens_under_union(trace: SafetyTrace) -> int:
    """Chosen tokens, up to the last, that Union has held, whatever asked for it."""
    chosen = (
        scheme
        for scheme, is_forced in zip(reversed(trace.schemes), reversed(trace.forced), strict=True)
        if not is_forced
    )
    return sum(1 for _ in itertools.takewhile(lambda scheme: scheme is Scheme.UNION, chosen))
