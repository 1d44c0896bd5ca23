"""`num_draft_tokens="auto"` beside fixed lengths and the target alone, in one run on one engine.

    python benchmarks/draft_length.py [PROMPTS]

For every prompt the ways take turns; prints decoding speed (the prompt's reading left out) and its ratio to the target
alone.
"""

from __future__ import annotations

import sys
from statistics import median

from transformers.utils import logging

from ssd_engine import GenerationParams, SSDConfig, SSDEngine
from ssd_engine.evaluation.speed import PROMPTS

WAYS = {
    "target": GenerationParams(max_new_tokens=48, decoding="target"),
    **{
        str(length): GenerationParams(max_new_tokens=48, ssd=SSDConfig(num_draft_tokens=length))
        for length in (1, 2, 3, 4, 5, 6, "auto")
    },
}


def main(count: int) -> None:
    """Measure and print."""
    logging.disable_progress_bar()
    speeds: dict[str, list[float]] = {name: [] for name in WAYS}
    rates: list[float] = []
    with SSDEngine.from_preset() as engine:
        engine.generate("Hello", GenerationParams(max_new_tokens=8, ssd=SSDConfig(num_draft_tokens="auto")))
        for turn, prompt in enumerate(PROMPTS[:count]):
            names = list(WAYS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                result = engine.generate([{"role": "user", "content": prompt}], WAYS[name])
                decoded = len(result.token_ids) - result.trace.round_sizes[0]
                speeds[name].append(decoded / (result.timings.total - result.timings.first_token))
                if name == "3":
                    rates.append(result.trace.match_rate)
    own = median(speeds["target"])
    for name, values in speeds.items():
        print(f"{name:>6} {median(values):6.2f} tokens/s  {median(values) / own:.2f} of the target's")
    print(f"Match rate {median(rates):.2f}.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(PROMPTS))
