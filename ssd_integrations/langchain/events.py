"""What LangChain's callbacks are told of a scheme switch, as a custom event.

LangChain hands a model's `_stream` no run to report to; it tells callbacks of each chunk itself. So a callback of our
own goes along with each call, and reports what the chunks bring to the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

from ssd_engine.scheme import Bin

SCHEME_SWITCH = "ssd_scheme_switch"
"""Name of the event. Its data: the bin's `ratio` and `threshold`, and the `scheme` and `next_scheme`."""


class ChunkWithBins(ChatGenerationChunk):
    """A part of a streamed answer, and the match-ratio bins that it completed."""

    _bins: tuple[Bin, ...] = PrivateAttr(())

    @classmethod
    def of(cls, bins: tuple[Bin, ...], **fields: Any) -> ChunkWithBins:
        chunk = cls(**fields)
        chunk._bins = bins
        return chunk

    @property
    def bins(self) -> tuple[Bin, ...]:
        return self._bins


class _Reporter(BaseCallbackHandler):
    def __init__(self, manager: CallbackManager) -> None:
        self._manager = manager

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        for data in _switches(chunk.bins if isinstance(chunk, ChunkWithBins) else ()):
            self._manager.on_custom_event(SCHEME_SWITCH, data, run_id=run_id)


class _AsyncReporter(AsyncCallbackHandler):
    def __init__(self, manager: AsyncCallbackManager) -> None:
        self._manager = manager

    async def on_llm_new_token(self, token: Any, *, chunk: Any = None, run_id: UUID, **kwargs: Any) -> None:
        for data in _switches(chunk.bins if isinstance(chunk, ChunkWithBins) else ()):
            await self._manager.on_custom_event(SCHEME_SWITCH, data, run_id=run_id)


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


def _metadata(config: RunnableConfig) -> dict[str, Any]:
    return config.get("metadata") or {}


def _switches(bins: Iterable[Bin]) -> Iterator[dict[str, Any]]:
    for each in bins:
        if each.is_switch:
            yield {
                "ratio": each.ratio,
                "threshold": each.threshold,
                "scheme": str(each.scheme),
                "next_scheme": str(each.next_scheme),
            }
