"""What signals cost: the time of a round with each of them beside one without, in one run on one engine.

    python benchmarks/signals.py [PROMPTS]

For every prompt the ways take turns. Beside a whole round's time, of which passes are most and vary, stands the rule's
own (`Timings.selection`), which has all that signals cost but the probe's product. Thresholds are 1, so that no signal
changes an answer; probe and refusal tokens are any, which costs the same as those of a real adapter.
"""

from __future__ import annotations

import sys
from statistics import median

import torch
from transformers import AutoConfig
from transformers.utils import logging

from ssd_engine import DraftSignals, GenerationParams, SSDConfig, SSDEngine
from ssd_engine.config import SIGNALS
from ssd_engine.evaluation.workloads import prompts_of
from ssd_engine.models.presets import default_preset, get_preset
from ssd_engine.models.resolve import resolve_pair
from ssd_engine.rule.draft_signals import Probe

WAYS = {
    "none": None,
    **{signal: {signal: 1.0} for signal in SIGNALS},
    "all": dict.fromkeys(SIGNALS, 1.0),
    "none again": None,
}
REFUSAL_IDS = tuple(range(1000, 1064))


def any_signals() -> DraftSignals:
    """Signals that fit the default pair's draft."""
    config = AutoConfig.from_pretrained(resolve_pair(get_preset(default_preset()))[1]).get_text_config()
    probe = Probe(
        layer=3 * config.num_hidden_layers // 4,
        weight=torch.zeros(config.hidden_size),
        bias=0.0,
        threshold=1.0,
        false_alarm_rate=0.0,
    )
    return DraftSignals(refusal_ids=REFUSAL_IDS, probe=probe)


def main(count: int) -> None:
    """Measure and print."""
    logging.disable_progress_bar()
    ratios: dict[str, list[float]] = {name: [] for name in WAYS}
    added: dict[str, list[float]] = {name: [] for name in WAYS}
    rounds: list[float] = []
    quantization = {"target_quantization": "int8", "draft_quantization": "int8"}
    with SSDEngine.from_preset(signals=any_signals(), **quantization) as engine:
        engine.generate("Hello", GenerationParams(max_new_tokens=8))
        for turn, prompt in enumerate(prompts_of("chat")[:count]):
            seconds: dict[str, float] = {}
            selection: dict[str, float] = {}
            names = list(WAYS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                params = GenerationParams(max_new_tokens=48, ssd=SSDConfig(signals=WAYS[name]))
                result = engine.generate([{"role": "user", "content": prompt}], params)
                spent = result.timings.total - result.timings.first_token
                seconds[name] = spent / (result.trace.rounds - 1)
                selection[name] = result.timings.selection / result.trace.rounds
            rounds.append(seconds["none"])
            for name, own in seconds.items():
                ratios[name].append(own / seconds["none"])
                added[name].append((selection[name] - selection["none"]) / seconds["none"])
    print(f"a round without signals: {1000 * median(rounds):.1f} ms")
    for name, values in ratios.items():
        span = f"from {min(values):.3f} to {max(values):.3f}"
        print(f"{name:>12}: {median(values):.3f} of it ({span}); the rule's own time {median(added[name]):+.2%} of it")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(prompts_of("chat")))
