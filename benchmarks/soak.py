"""Many requests of mixed length through one engine: is anything lost, does memory stay flat?

    python benchmarks/soak.py [REQUESTS]

Prompts of 1 to 60 tokens, answers of 1 to 16, all decodings, greedy and sampled, from 16 threads on the default pair.
Prefixes are kept up to 64 MB a model, so that this store is full early and what grows later is a leak.
"""

from __future__ import annotations

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
from tqdm.auto import tqdm
from transformers.utils import logging

from ssd_engine import GenerationParams, SSDEngine

THREADS = 16


def main(count: int) -> None:
    """Ask, and print what was seen."""
    logging.disable_progress_bar()
    process, rng = psutil.Process(), random.Random(0)
    memory: list[int] = []
    seen = threading.Lock()

    def ask(request: tuple[list[int], GenerationParams]) -> bool:
        prompt, params = request
        result = engine.generate(prompt, params)
        with seen:
            memory.append(process.memory_info().rss)
        ended = result.finish_reason == "stop" or len(result.token_ids) == params.max_new_tokens
        return ended and len(result.trace.matched) == len(result.token_ids)

    requests = [
        (
            [rng.randrange(1000, 100_000) for _ in range(rng.randrange(1, 61))],
            GenerationParams(
                max_new_tokens=rng.randrange(1, 17),
                temperature=rng.choice([0.0, 0.8]),
                seed=index,
                decoding=rng.choice(["ssd", "ssd", "speculative", "target"]),
            ),
        )
        for index in range(count)
    ]
    with SSDEngine.from_preset(prefix_cache_bytes=64 * 2**20) as engine, ThreadPoolExecutor(THREADS) as callers:
        answered = sum(tqdm(callers.map(ask, requests), total=count, unit="request"))
    tenths = [memory[min(count * tenth // 10, count - 1)] / 1e9 for tenth in range(1, 11)]
    settled = memory[count // 10 :]
    print(f"{answered} of {count} requests answered to their end.")
    print(
        f"Memory after the first tenth: {min(settled) / 1e9:.3f} to {max(settled) / 1e9:.3f} GB "
        f"({max(settled) / min(settled) - 1:.1%} apart); at the end {settled[-1] / 1e9:.3f} GB."
    )
    print(f"After each tenth: {', '.join(f'{size:.3f}' for size in tenths)} GB.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
