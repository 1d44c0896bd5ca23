"""What LlamaIndex's instrumentation is told of scheme switches and of signals' alarms."""

from __future__ import annotations

from dataclasses import asdict

from llama_index.core.instrumentation.events import BaseEvent
from llama_index_instrumentation import get_dispatcher

from ssd_engine.answers.result import Piece

_dispatcher = get_dispatcher(__name__)


class SchemeSwitchEvent(BaseEvent):
    """A match-ratio bin switched the decoding scheme."""

    ratio: float
    threshold: float
    scheme: str
    next_scheme: str

    @classmethod
    def class_name(cls) -> str:
        """The name that handlers know it by."""
        return "SchemeSwitchEvent"


class AlarmEvent(BaseEvent):
    """A signal began to ask for Union, as an `ssd_engine.rule.signals.Alarm` tells."""

    place: int
    signal: str
    score: float
    threshold: float

    @classmethod
    def class_name(cls) -> str:
        """The name that handlers know it by."""
        return "AlarmEvent"


def report_risk(piece: Piece) -> None:
    """One event for each bin of `piece` that switched the scheme, and for each of its alarms."""
    for alarm in piece.alarms:
        _dispatcher.event(AlarmEvent(**asdict(alarm)))
    for each in piece.bins:
        if each.is_switch:
            _dispatcher.event(
                SchemeSwitchEvent(
                    ratio=each.ratio,
                    threshold=each.threshold,
                    scheme=str(each.scheme),
                    next_scheme=str(each.next_scheme),
                )
            )
