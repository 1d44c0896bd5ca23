"""Callers of every kind, each in a thread of its own, whose outcomes a test waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from ssd_engine import GenerationParams, GenerationResult, SSDEngine

SECONDS = 30
"""How long a test waits for what has to come: far longer than it takes, and far shorter than for ever."""


class Outcome:
    """What a call comes to."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    @property
    def is_there(self) -> bool:
        return not self._thread.is_alive()

    def get(self) -> Any:
        """The result, or the exception that was raised in its place."""
        self._thread.join(SECONDS)
        assert self.is_there, "the caller still waits"
        return self._value if self._error is None else self._error


def generate(engine: SSDEngine, prompt: Any, params: GenerationParams, tools: Any = None) -> GenerationResult:
    return engine.generate(prompt, params, tools=tools)


def stream(engine: SSDEngine, prompt: Any, params: GenerationParams, tools: Any = None) -> GenerationResult | None:
    for piece in engine.stream(prompt, params, tools=tools):
        last = piece.result
    return last


def agenerate(engine: SSDEngine, prompt: Any, params: GenerationParams, tools: Any = None) -> GenerationResult:
    return asyncio.run(engine.agenerate(prompt, params, tools=tools))


def astream(engine: SSDEngine, prompt: Any, params: GenerationParams, tools: Any = None) -> GenerationResult | None:
    async def last() -> GenerationResult | None:
        async for piece in engine.astream(prompt, params, tools=tools):
            result = piece.result
        return result

    return asyncio.run(last())


def batch(engine: SSDEngine, prompt: Any, params: GenerationParams, tools: Any = None) -> Any:
    return engine.batch([prompt], params, tools=tools)[0]


def abatch(engine: SSDEngine, prompt: Any, params: GenerationParams, tools: Any = None) -> Any:
    return asyncio.run(engine.abatch([prompt], params, tools=tools))[0]


CALLERS = (generate, stream, agenerate, astream, batch, abatch)
