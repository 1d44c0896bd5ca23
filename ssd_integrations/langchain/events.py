"""What LangChain's callbacks are told of a scheme switch, as a custom event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)

from ssd_engine.scheme import Bin

SCHEME_SWITCH = "ssd_scheme_switch"
"""Name of the event. Its data: the bin's `ratio` and `threshold`, and the `scheme` and `next_scheme`."""


def report_switches(bins: Iterable[Bin], run: CallbackManagerForLLMRun | None) -> None:
    """One event of the run for each of `bins` that switched the scheme."""
    if run is None:
        return
    for data in _switches(bins):
        CallbackManager(**_told(run)).on_custom_event(SCHEME_SWITCH, data, run_id=run.run_id)


async def areport_switches(bins: Iterable[Bin], run: AsyncCallbackManagerForLLMRun | None) -> None:
    """`report_switches`, asynchronously."""
    if run is None:
        return
    for data in _switches(bins):
        await AsyncCallbackManager(**_told(run)).on_custom_event(SCHEME_SWITCH, data, run_id=run.run_id)


def _told(run: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun) -> dict[str, Any]:
    """Arguments of a manager of the same callbacks: a model run's own has no way to send custom events."""
    return {"handlers": list(run.handlers), "tags": run.tags, "metadata": run.metadata}


def _switches(bins: Iterable[Bin]) -> Iterator[dict[str, Any]]:
    for each in bins:
        if each.is_switch:
            yield {
                "ratio": each.ratio,
                "threshold": each.threshold,
                "scheme": str(each.scheme),
                "next_scheme": str(each.next_scheme),
            }
