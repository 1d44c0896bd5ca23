"""A trial of a pair: how it answers the benchmark's ordinary prompts."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from ssd_engine.answers.result import GenerationResult
from ssd_engine.config import GenerationParams
from ssd_engine.engine import Engine
from ssd_engine.evaluation.workloads import prompts_of

_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a few answers showed."""

    prompts: int
    match_rate: float
    union_share: float
    bridge_mass: float | None
    """The draft's probability of tokens that the target lacks, on average; None: both have one vocabulary."""
    tokens_per_second: float | None
    """Decoding, of `ssd`; None: all answers ended in their first round."""
    target_tokens_per_second: float | None
    """Of the target alone."""

    @classmethod
    def of(cls, engine: Engine, prompts: int) -> Trial:
        """Answer the first `prompts` of the chat workload with `ssd` and with the target alone."""
        params = GenerationParams(max_new_tokens=_TOKENS)
        answers: dict[str, list[GenerationResult]] = {"ssd": [], "target": []}
        for prompt in prompts_of("chat")[:prompts]:
            for decoding, results in answers.items():
                messages = [{"role": "user", "content": prompt}]
                results.append(engine.generate(messages, params.replaced(decoding=decoding)))
        traces = [result.trace for result in answers["ssd"]]
        masses = [mass for trace in traces for mass in trace.bridge_mass]
        return cls(
            prompts=len(traces),
            match_rate=fmean(trace.match_rate for trace in traces),
            union_share=fmean(trace.union_share for trace in traces),
            bridge_mass=fmean(masses) if masses else None,
            tokens_per_second=_speed(answers["ssd"]),
            target_tokens_per_second=_speed(answers["target"]),
        )


def _speed(results: list[GenerationResult]) -> float | None:
    """Tokens a second after the first round; None where there are none."""
    tokens = sum(len(result.token_ids) - result.trace.round_sizes[0] for result in results)
    seconds = sum(result.timings.total - result.timings.first_token for result in results)
    return tokens / seconds if tokens else None
