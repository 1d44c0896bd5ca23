"""A forked process is told at once, and can make an engine of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

import pytest
from conftest import make_model
from outcomes import SECONDS, Outcome, agenerate, generate, stream
from transformers import PreTrainedTokenizerFast
from worker_cases import SHORT, Pair

from ssd_engine import GenerationParams, SSDEngine, registry
from ssd_engine.errors import EngineClosedError
from ssd_engine.models.pair import PairSpec

# -- Forks --


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("caller", [generate, stream, agenerate])
def test_a_forked_child_is_told_at_once_and_can_make_an_engine_of_its_own(
    tiny_pair: Pair, tokenizer: PreTrainedTokenizerFast, caller: Any
) -> None:
    with SSDEngine(*tiny_pair, tokenizer) as engine:
        expected = engine.generate([1, 2], SHORT).token_ids
        under_way = engine.stream([1, 2], GenerationParams(max_new_tokens=1500))
        next(under_way)

        def child(results: Any) -> None:
            told = []
            for ask in (lambda: caller(engine, [1, 2], SHORT), lambda: list(under_way)):
                try:
                    ask()
                except EngineClosedError as error:
                    told.append(str(error))
            size = len(tokenizer)
            with SSDEngine(make_model(1, size), make_model(2, size), tokenizer) as own:
                num_tokens = len(own.generate([1, 2], SHORT).token_ids)
            engine.close()
            results.put((told, engine.is_closed, num_tokens))

        context = multiprocessing.get_context("fork")
        results = context.Queue()
        process = context.Process(target=child, args=(results,), daemon=True)
        process.start()
        try:
            told, is_closed, num_tokens = results.get(timeout=SECONDS)
        finally:
            process.kill()
        assert len(told) == 2
        assert all("fork" in message for message in told)
        assert is_closed
        assert num_tokens == 12
        under_way.close()
        assert engine.generate([1, 2], SHORT).token_ids == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_is_forked_while_a_pair_is_loaded_loads_its_own(saved_pair: dict[str, str]) -> None:
    released, is_held = threading.Event(), threading.Event()

    def load() -> None:
        with registry._pairs._lock:  # as while models are loaded
            is_held.set()
            released.wait()

    held = Outcome(load)
    assert is_held.wait(SECONDS)

    def child(results: Any) -> None:
        engine = registry.shared_engine(PairSpec(target=saved_pair["model"], draft=saved_pair["draft"]))
        results.put(len(engine.generate([1, 2], SHORT).token_ids))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=child, args=(results,), daemon=True)
    process.start()
    try:
        assert results.get(timeout=SECONDS) == 12
    finally:
        process.kill()
        released.set()
        held.get()
