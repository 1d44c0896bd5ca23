"""What one demanding request costs the others, and what a long line costs a round.

    python benchmarks/fairness.py

Seven streams on the default pair, first by themselves, then beside a new prompt of 2,000 tokens, then beside a request
that drafts 64 tokens a round: the streams' time between pieces, and their tokens a second, as ratios. Then, on a small
random pair, the time between two rounds with nobody in line and with 10,000 requests there, half of which are given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from ssd_engine import GenerationParams, SSDConfig, SSDEngine
from ssd_engine.models.presets import default_preset, get_preset
from ssd_engine.models.resolve import resolve_pair

STREAMS = 7
PIECES = 15
"""Of each stream, that make a phase."""
IN_LINE = 10_000
ROUNDS = 200
"""That are looked at for each line."""


class Streams:
    """Requests that are streamed one after the other by several threads; when their pieces came, and of what size."""

    def __init__(self, engine: SSDEngine) -> None:
        self._engine = engine
        self._has_ended = threading.Event()
        self._times: list[list[float]] = [[] for _ in range(STREAMS)]
        self._arrivals: list[tuple[float, int]] = []
        """When tokens of any stream came, and how many."""
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(STREAMS)]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While they stream."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._has_ended.set()
            for thread in self._threads:
                thread.join()

    def wait(self, pieces: int) -> None:
        """Until every stream has had so many more pieces."""
        wanted = [len(times) + pieces for times in self._times]
        while any(len(times) < count for times, count in zip(self._times, wanted, strict=True)):
            time.sleep(0.05)

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between two pieces of one stream, of those that came from `begin` to `end`."""
        gaps: list[float] = []
        for times in self._times:
            inside = [moment for moment in times if begin <= moment <= end]
            gaps += [later - earlier for earlier, later in itertools.pairwise(inside)]
        return gaps

    def tokens_per_second(self, begin: float, end: float) -> float:
        """Of all streams together, from `begin` to `end`."""
        return sum(count for moment, count in self._arrivals if begin <= moment <= end) / (end - begin)

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        while not self._has_ended.is_set():
            params = GenerationParams(max_new_tokens=1000, temperature=0.8, seed=rng.randrange(2**31))
            for piece in self._engine.stream(_words(rng, 12), params):
                now = time.perf_counter()
                self._times[number].append(now)
                self._arrivals.append((now, len(piece.token_ids)))
                if self._has_ended.is_set():
                    break


def _words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1000, 100_000) for _ in range(count)]


def streams() -> None:
    """What a long prompt and long drafts cost seven streams."""
    rng = random.Random(99)
    with SSDEngine.from_preset() as engine:
        streams = Streams(engine)
        with streams.running():
            streams.wait(PIECES)
            for name, prompt, params in (
                ("a new prompt of 2,000 tokens", _words(rng, 2000), GenerationParams(max_new_tokens=1)),
                (
                    "a request of 64 drafts",
                    _words(rng, 12),
                    GenerationParams(max_new_tokens=60, temperature=0.8, ssd=SSDConfig(num_draft_tokens=64)),
                ),
            ):
                begin = time.perf_counter()
                streams.wait(PIECES)
                middle = time.perf_counter()
                engine.generate(prompt, params)
                end = time.perf_counter()
                alone, beside = streams.gaps(begin, middle), streams.gaps(middle, end)
                print(f"{name}, which took {end - middle:.1f} s; seconds between the pieces of the others")
                speed, slowed = streams.tokens_per_second(begin, middle), streams.tokens_per_second(middle, end)
                print(f"  tokens a second: {speed:.2f} alone, {slowed:.2f} beside it: x {slowed / speed:.2f}")
                for kind, of in (("median", statistics.median), ("mean", statistics.mean), ("longest", max)):
                    print(
                        f"  {kind}: {of(alone):.3f} alone, {of(beside):.3f} beside it: x {of(beside) / of(alone):.2f}"
                    )


async def line() -> None:
    """What a long line costs a round."""
    engine = _small_engine()
    decoder: Any = engine._scheduler._decoder  # type: ignore[attr-defined]
    advance = decoder.round
    gaps: list[float] = []
    ended = 0.0

    def timed(sequences: Any) -> Any:
        nonlocal ended
        gaps.append(time.perf_counter() - ended)
        outcome = advance(sequences)
        ended = time.perf_counter()
        return outcome

    decoder.round = timed

    async def gap() -> float:
        """Median milliseconds between two of the next rounds."""
        first = len(gaps)
        await _until(lambda: len(gaps) > first + ROUNDS)
        return 1e3 * statistics.median(gaps[first + 1 :])

    running = [asyncio.create_task(_drain(engine, 50_000)) for _ in range(8)]
    await _until(lambda: len(gaps) > ROUNDS)
    print(f"milliseconds between two rounds: {await gap():.2f} with nobody in line")
    waiting = [asyncio.create_task(_drain(engine, 1)) for _ in range(IN_LINE)]
    await _until(lambda: engine.num_waiting == IN_LINE)
    print(f"  {await gap():.2f} with {IN_LINE:,} in line")
    begin = len(gaps)
    for task in random.Random(0).sample(waiting, IN_LINE // 2):
        task.cancel()
    await _until(lambda: engine.num_waiting == IN_LINE // 2)
    print(f"  at most {1e3 * max(gaps[begin:], default=0.0):.2f} while the event loop gives half of them up")
    print(f"  {await gap():.2f} when they are gone")
    engine.close()
    await asyncio.gather(*running, *waiting, return_exceptions=True)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.05)


async def _drain(engine: SSDEngine, max_new_tokens: int) -> None:
    async for _ in engine.astream([1, 2, 3], GenerationParams(max_new_tokens=max_new_tokens)):
        pass


def _small_engine() -> SSDEngine:
    """Random models with the default pair's tokenizer, and room for answers without end."""
    target, _ = resolve_pair(get_preset(default_preset()))
    tokenizer = AutoTokenizer.from_pretrained(target)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=100_000,
        eos_token_id=None,
    )
    models = [Qwen2ForCausalLM(config).eval() for _ in range(2)]
    return SSDEngine(*models, tokenizer, kv_cache_bytes=2**28)


if __name__ == "__main__":
    logging.disable_progress_bar()
    asyncio.run(line())
    streams()
