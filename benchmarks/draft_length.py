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
from ssd_engine.evaluation.workloads import prompts_of

LENGTHS = (1, 2, 3, 4, 5, 6, "auto")


def ways_of(config: SSDConfig) -> dict[str, GenerationParams]:
    """The target alone, and SSD by the number of tokens in a draft, with the pair's other settings."""
    params = GenerationParams(max_new_tokens=48)
    drafting = {str(length): params.replaced(ssd=config.replaced(num_draft_tokens=length)) for length in LENGTHS}
    return {"target": params.replaced(decoding="target"), **drafting}


def main(count: int) -> None:
    """Measure and print."""
    logging.disable_progress_bar()
    rates: list[float] = []
    with SSDEngine.from_preset() as engine:
        ways = ways_of(engine.config)
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        engine.generate("Hello", ways["auto"])
        for turn, prompt in enumerate(prompts_of("chat")[:count]):
            names = list(ways)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                result = engine.generate([{"role": "user", "content": prompt}], ways[name])
                decoded = len(result.token_ids) - result.trace.round_sizes[0]
                speeds[name].append(decoded / (result.timings.total - result.timings.first_token))
                if name == "3":
                    rates.append(result.trace.match_rate)
    own = median(speeds["target"])
    for name, values in speeds.items():
        print(f"{name:>6} {median(values):6.2f} tokens/s  {median(values) / own:.2f} of the target's")
    print(f"Match rate {median(rates):.2f}.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(prompts_of("chat")))
