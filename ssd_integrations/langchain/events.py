"""What LangChain's callbacks are told of scheme switches and of signals' alarms, as custom events.

LangChain hands a model's `_stream` no run to report to; it tells callbacks of each chunk itself. So a callback of our
own goes along with each call, and reports what the chunks bring to the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables.config import RunnableConfig, ensure_config, merge_configs
from pydantic import PrivateAttr

from ssd_engine.answers.result import Piece

SCHEME_SWITCH = "ssd_scheme_switch"
"""Name of the event of a match-ratio bin that switches the scheme. Its data: the bin's `ratio` and `threshold`, and the
`scheme` and `next_scheme`."""
ALARM = "ssd_alarm"
"""Name of the event of a signal that begins to ask for Union. Its data: those of an `ssd_engine.rule.signals.Alarm`."""


class ChunkOfPiece(ChatGenerationChunk):
    """A part of a streamed answer, and the piece that it was made of."""

    _piece: Piece = PrivateAttr(Piece())

    @classmethod
    def of(cls, piece: Piece, **fields: Any) -> ChunkOfPiece:
        """A chunk of a piece, with the chunk's other fields."""
        chunk = cls(**fields)
        chunk._piece = piece
        return chunk

    @property
    def piece(self) -> Piece:
        """The piece that it was made of."""
        return self._piece


class _Reporter(BaseCallbackHandler):
    def __init__(self, manager: CallbackManager) -> None:
        self._manager = manager

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        for name, data in _events(chunk.piece if isinstance(chunk, ChunkOfPiece) else Piece()):
            self._manager.on_custom_event(name, data, run_id=run_id)


class _AsyncReporter(AsyncCallbackHandler):
    def __init__(self, manager: AsyncCallbackManager) -> None:
        self._manager = manager

    async def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        for name, data in _events(chunk.piece if isinstance(chunk, ChunkOfPiece) else Piece()):
            await self._manager.on_custom_event(name, data, run_id=run_id)


def reporting(config: RunnableConfig | None, callbacks: Callbacks) -> RunnableConfig:
    """A call's config, with a callback that reports to the config's own and to the model's `callbacks`."""
    config = ensure_config(config)
    manager = CallbackManager.configure(
        config.get("callbacks"), callbacks, inheritable_tags=config.get("tags"), inheritable_metadata=_metadata(config)
    )
    return merge_configs(config, {"callbacks": [_Reporter(manager)]})


def areporting(config: RunnableConfig | None, callbacks: Callbacks) -> RunnableConfig:
    """`reporting`, for calls of an event loop."""
    config = ensure_config(config)
    manager = AsyncCallbackManager.configure(
        config.get("callbacks"), callbacks, inheritable_tags=config.get("tags"), inheritable_metadata=_metadata(config)
    )
    return merge_configs(config, {"callbacks": [_AsyncReporter(manager)]})


def report_risk(piece: Piece, run: CallbackManagerForLLMRun | None) -> None:
    """One event of the run for each bin of `piece` that switched the scheme, and for each of its alarms."""
    if run is None:
        return
    for name, data in _events(piece):
        CallbackManager(**_told(run)).on_custom_event(name, data, run_id=run.run_id)


async def areport_risk(piece: Piece, run: AsyncCallbackManagerForLLMRun | None) -> None:
    """`report_risk`, asynchronously."""
    if run is None:
        return
    for name, data in _events(piece):
        await AsyncCallbackManager(**_told(run)).on_custom_event(name, data, run_id=run.run_id)


def _told(run: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun) -> dict[str, Any]:
    """Arguments of a manager of the same callbacks: a model run's own has no way to send custom events."""
    return {"handlers": list(run.handlers), "tags": run.tags, "metadata": run.metadata}


def _metadata(config: RunnableConfig) -> dict[str, Any]:
    return config.get("metadata") or {}


def _events(piece: Piece) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the data of each event."""
    for alarm in piece.alarms:
        yield ALARM, asdict(alarm)
    for each in piece.bins:
        if each.is_switch:
            switch = {
                "ratio": each.ratio,
                "threshold": each.threshold,
                "scheme": str(each.scheme),
                "next_scheme": str(each.next_scheme),
            }
            yield SCHEME_SWITCH, switch
