"""What LlamaIndex's instrumentation is told of a scheme switch."""

from __future__ import annotations

from collections.abc import Iterable

from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation import get_dispatcher

from ssd_engine.scheme import Bin

_dispatcher = get_dispatcher(__name__)


class SchemeSwitchEvent(BaseEvent):
    """A match-ratio bin switched the decoding scheme."""

    ratio: float
    threshold: float
    scheme: str
    next_scheme: str

    @classmethod
    def class_name(cls) -> str:
        return "SchemeSwitchEvent"


def report_switches(bins: Iterable[Bin]) -> None:
    """One event for each of `bins` that switched the scheme."""
    for each in bins:
        if each.is_switch:
            _dispatcher.event(
                SchemeSwitchEvent(
                    ratio=each.ratio,
                    threshold=each.threshold,
                    scheme=str(each.scheme),
                    next_scheme=str(each.next_scheme),
                )
            )
