"""Where a forward pass's time goes: transformers' own layers beside this engine's passes, by tokens in the pass.

    python benchmarks/passes.py [target] [draft] [transformers] ["16 bit"] [int8] [FORM, compiled ...]

Prints, for target and draft of the default pair in all forms, or for those that are named, medians in milliseconds:
the whole pass, and the parts of it that torch's profiler sees (matrix products, attention, other operators); what is
left is Python between the operators, and in compiled passes also the fused operators.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.backends.transformers.segments import in_blocks
from ssd_engine.models.checkpoints import LoadOptions, load_model
from ssd_engine.models.forward import cache_argument
from ssd_engine.models.presets import get_preset
from ssd_engine.models.resolve import resolve_pair

CONTEXT = 100
SIZES = (1, 3, 8, 24)
REPEATS = 7
PROFILED = 2
PRODUCTS = ("linear", "_linear", "mm", "addmm", "matmul")
NOT_OPERATORS = ("ssd_engine::", "## Call", "Torch-Compiled", "TorchDynamo", "Pregraph", "AOTDispatcher")
"""What the profiler shows beside operators: Python, and compiled code around them."""
COLUMNS = ("whole", "products", "attention", "other", "between")


def ours(source: Path, *, quantization: str | None = None, compile: bool = False) -> Callable[[int], Callable[[], Any]]:
    """Passes of this engine: `size` sequences with a token each."""
    with ThreadPoolExecutor(1) as loading:
        model = loading.submit(load_model, source, LoadOptions(quantization=quantization)).result()
        vocabulary_size = model.config.get_text_config().vocab_size
        runner = loading.submit(ModelRunner, model, vocabulary_size, compile=compile).result()
    runner.allocate(max(SIZES) * in_blocks(CONTEXT + 4), 2**28)  # the rows share one prompt, read once

    def of(size: int) -> Callable[[], Any]:
        rows = [row for _ in range(size) if (row := runner.open(range(1, CONTEXT + 1), 4)) is not None]
        for row in rows:
            while row.next_block:
                runner.read_block(row)
            runner.close(row)

        def once() -> None:
            runner.forward(rows, torch.ones(size, dtype=torch.int64), [1] * size)
            for row in rows:
                row.roll_back()

        return once

    return of


def theirs(source: Path) -> Callable[[int], Callable[[], Any]]:
    """Passes of transformers' layers: one sequence with `size` tokens."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True).eval()

    def of(size: int) -> Callable[[], Any]:
        cache = DynamicCache(config=model.config)
        name = cache_argument(model)
        model(input_ids=torch.arange(1, CONTEXT + 1)[None], use_cache=True, **{name: cache})
        token_ids = torch.ones(1, size, dtype=torch.int64)

        def once() -> None:
            model(input_ids=token_ids, use_cache=True, **{name: cache})
            cache.crop(-size)

        return once

    return of


@torch.inference_mode()
def measure(once: Callable[[], Any]) -> list[float]:
    """Milliseconds: the whole pass, matrix products, attention, other operators, the rest."""
    for _ in range(2):
        once()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(PROFILED):
            once()
    parts = {"products": 0.0, "attention": 0.0, "other": 0.0}
    for event in seen.key_averages():
        name = event.key.rpartition("::")[2]
        if event.key.startswith(NOT_OPERATORS):
            continue
        kind = "attention" if "attention" in name else "products" if name.startswith(PRODUCTS) else "other"
        parts[kind] += event.self_cpu_time_total / (PROFILED * 1e3)
    whole = median(times) * 1e3
    return [whole, *parts.values(), whole - sum(parts.values())]


def main() -> None:
    """Measure and print."""
    logging.disable_progress_bar()
    print(f"{'':30} tokens " + " ".join(f"{column:>9}" for column in COLUMNS))
    kinds: dict[str, Callable[[Path], Callable[[int], Callable[[], Any]]]] = {
        "transformers": theirs,
        "16 bit": ours,
        "16 bit, compiled": partial(ours, compile=True),
        "int8": partial(ours, quantization="int8"),
        "int8, compiled": partial(ours, quantization="int8", compile=True),
    }
    pair = dict(zip(("target", "draft"), resolve_pair(get_preset("qwen2.5-coder-1.5b")), strict=True))
    for name in [name for name in sys.argv[1:] if name in pair] or pair:
        source = pair[name]
        for kind in [kind for kind in sys.argv[1:] if kind in kinds] or kinds:
            of = kinds[kind](source)
            for size in SIZES:
                with torch.inference_mode():
                    once = of(size)
                parts = " ".join(f"{value:9.1f}" for value in measure(once))
                print(f"{name + ', ' + kind:30} {size:6} {parts}", flush=True)
            del of, once


if __name__ == "__main__":
    # In a thread of its own, as the engine's passes: the main thread's compute threads would be in the way.
    worker = threading.Thread(target=main)
    worker.start()
    worker.join()
