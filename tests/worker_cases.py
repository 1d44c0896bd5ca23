"""What tests of an engine's worker have in common."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from outcomes import CALLERS, SECONDS, Outcome
from transformers import PreTrainedModel

from ssd_engine import GenerationParams, SSDEngine

Pair = tuple[PreTrainedModel, PreTrainedModel]
SHORT = GenerationParams(max_new_tokens=12)
PROMPTS = [[5 + i, 20, 33, *range(40, 90)] for i in range(len(CALLERS))]
"""Each with several blocks to read."""


# -- Timeouts --


@pytest.fixture
def stuck(tiny_engine: SSDEngine) -> Iterator[SSDEngine]:
    """An engine whose worker stands still in a round."""
    released, has_begun = threading.Event(), threading.Event()
    decoder = tiny_engine._scheduler._decoder
    advance = decoder.round

    def stand_still(sequences: Any) -> Any:
        has_begun.set()
        released.wait()
        return advance(sequences)

    decoder.round = stand_still  # type: ignore[method-assign]
    first = Outcome(lambda: tiny_engine.generate([1, 2], SHORT))
    assert has_begun.wait(SECONDS)
    yield tiny_engine
    released.set()
    assert first.get().token_ids
