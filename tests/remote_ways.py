"""The ways in which an engine is asked."""

from __future__ import annotations

import asyncio

import pytest
from remote_cases import MESSAGES

from ssd_engine import GenerationParams, GenerationResult

pytest.importorskip("openai")
from ssd_engine.remote.engine import RemoteEngine

LONG_ENOUGH = GenerationParams(max_new_tokens=50)


def generated(engine: RemoteEngine, way: str, params: GenerationParams = LONG_ENOUGH) -> GenerationResult:
    """The answer to `MESSAGES`, asked for in one of the engine's four ways."""
    if way == "sync":
        return engine.generate(MESSAGES, params)
    if way == "async":
        return asyncio.run(engine.agenerate(MESSAGES, params))
    (result,) = engine.batch([MESSAGES], params) if way == "batch" else asyncio.run(engine.abatch([MESSAGES], params))
    if isinstance(result, Exception):
        raise result
    return result


every_way = pytest.mark.parametrize("way", ["sync", "async", "batch", "abatch"])
