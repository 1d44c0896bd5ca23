"""Prometheus figures of the answers that a server has given, beside vLLM's own at `/metrics`."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from ssd_engine.config import SIGNALS
from ssd_engine.trace.safety_trace import SafetyTrace

_TOKENS = Counter("ssd_tokens", "Tokens chosen, by scheme and by match with the draft.", ["scheme", "matched"])
_RATIOS = Histogram(
    "ssd_match_ratio", "Match ratios of completed bins.", buckets=[0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.999, 1.0]
)
_SWITCHES = Counter("ssd_switches", "Changes of scheme.")
_ALARMS = Counter("ssd_alarms", "Times that signals began to ask for Union, by signal.", ["signal"])
for _signal in SIGNALS:
    _ALARMS.labels(_signal)  # shown from the first, as 0
_REQUESTS = Counter("ssd_requests", "Answers given, by risk.", ["risk"])
for _risk in ("none", "elevated"):
    _REQUESTS.labels(_risk)  # shown from the first, as 0


def record(trace: SafetyTrace) -> None:
    """Enter an answer that has ended."""
    for scheme, matched, forced in zip(trace.schemes, trace.matched, trace.forced, strict=True):
        _TOKENS.labels(scheme.value, "forced" if forced else str(matched).lower()).inc()
    for ratio in trace.match_ratios:
        _RATIOS.observe(ratio)
    _SWITCHES.inc(trace.switches)
    for alarm in trace.alarms:
        _ALARMS.labels(alarm.signal).inc()
    _REQUESTS.labels(trace.risk).inc()
