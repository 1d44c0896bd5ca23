"""`num_draft_tokens="auto"` beside fixed lengths, in one run on one engine.

    python benchmarks/draft_length.py [PROMPTS]

For every prompt the lengths take turns; prints decoding speed (the prompt's reading left out) and its ratio to the best
fixed length.
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Literal

from transformers.utils import logging

from ssd_engine import GenerationParams, SSDConfig, SSDEngine
from ssd_engine.evaluation.speed import PROMPTS

LENGTHS: tuple[int | Literal["auto"], ...] = (1, 2, 3, 4, 5, 6, "auto")


def main(count: int) -> None:
    """Measure and print."""
    logging.disable_progress_bar()
    speeds: dict[int | str, list[float]] = {length: [] for length in LENGTHS}
    with SSDEngine.from_preset() as engine:
        engine.generate("Hello", GenerationParams(max_new_tokens=8, ssd=SSDConfig(num_draft_tokens="auto")))
        for turn, prompt in enumerate(PROMPTS[:count]):
            for length in (*LENGTHS[turn % len(LENGTHS) :], *LENGTHS[: turn % len(LENGTHS)]):
                params = GenerationParams(max_new_tokens=48, ssd=SSDConfig(num_draft_tokens=length))
                result = engine.generate([{"role": "user", "content": prompt}], params)
                decoded = len(result.token_ids) - result.trace.round_sizes[0]
                speeds[length].append(decoded / (result.timings.total - result.timings.first_token))
    medians = {length: median(values) for length, values in speeds.items()}
    best = max(value for length, value in medians.items() if length != "auto")
    for length, value in medians.items():
        print(f"{length!s:>5} {value:6.2f} tokens/s  {value / best:.2f} of the best fixed length")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(PROMPTS))
