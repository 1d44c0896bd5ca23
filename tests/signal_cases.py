"""A pair whose draft has signals, and what they are to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import make_model, make_relative
from reference import next_logits
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationResult, SSDConfig, SSDEngine
from ssd_engine.config import SIGNALS, Signal, SignalConfig
from ssd_engine.models.checkpoints import fingerprint
from ssd_engine.rule.draft_signals import DraftSignals, Probe

REFUSAL_IDS = tuple(range(40, 400, 24))
BREAK_IDS = tuple(range(40, 400, 2))
"""Many, so that these models, which know nothing, have places where one of them is likely."""
CALM = {"match_threshold": 0.0}
"""The match ratio never asks for Union."""
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
BEGUN = [*QUESTION, {"role": "assistant", "content": "Paris, of course. The quick brown fox"}]


@pytest.fixture(scope="module")
def pair(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, PreTrainedModel]:
    target = make_model(1, len(tokenizer), layers=3)
    return target, make_relative(target, 2, 0.15)


@pytest.fixture(scope="module")
def signals(pair: tuple[PreTrainedModel, PreTrainedModel]) -> DraftSignals:
    weight = 0.1 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    probe = Probe(layer=2, weight=weight, bias=-0.5, threshold=0.7, false_alarm_rate=0.01)
    return DraftSignals(refusal_ids=REFUSAL_IDS, break_ids=BREAK_IDS, probe=probe, fingerprint=fingerprint(pair[1]))


@pytest.fixture(scope="module")
def engine(
    pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast, signals: DraftSignals
) -> Iterator[SSDEngine]:
    with SSDEngine(*pair, tokenizer, signals=signals, name="heard") as engine:
        yield engine


def config(hold: int = 3, smoothing: int = 1, *, latch: bool = False, **settings: Any) -> SSDConfig:
    """All signals, at thresholds that these models pass now and then; `settings` of the rest, or other thresholds."""
    thresholds = {name: settings.pop(name) for name in SIGNALS if name in settings}
    thresholds = thresholds or {"refusal_mass": 0.3, "probe": 0.9, "kl": 0.4}
    return SSDConfig(signals={**thresholds, "hold": hold, "smoothing": smoothing, "latch": latch}, **settings)


# -- What an engine does --


def hidden(model: PreTrainedModel, token_ids: list[int], layer: int) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([token_ids]), output_hidden_states=True).hidden_states[layer][0, -1]


def expected_scores(
    pair: tuple[PreTrainedModel, PreTrainedModel], signals: DraftSignals, before: list[int]
) -> dict[Signal, float]:
    """All signals at the place after `before`, each model reading everything anew."""
    vocab = pair[0].config.vocab_size
    log_target, log_draft = (torch.tensor(next_logits(model, before, vocab)).log_softmax(-1) for model in pair)
    probe = signals.probe
    assert probe is not None
    kl = (log_draft.exp() * (log_draft - log_target)).sum()
    return {
        "refusal_mass": log_draft.exp()[list(signals.refusal_ids)].sum().item(),
        "probe": (hidden(pair[1], before, probe.layer) @ probe.weight + probe.bias).sigmoid().item(),
        "kl": 1 - (-kl).exp().item(),
    }


def expected_union(scores: list[dict[Signal, float]], chosen: list[int | None], settings: SignalConfig) -> list[bool]:
    """Where signals ask for Union, written as the rule is told; what was given has None for a choice."""
    alarms = [any(each[name] >= at for name, at in settings.thresholds.items() if name in each) for each in scores]
    asked: list[bool] = []
    is_refusing = False
    for place, token_id in enumerate(chosen):
        holds = any(alarms[max(place - settings.hold + 1, 0) : place + 1])
        asked.append(holds or is_refusing)
        is_refusing |= holds and token_id in REFUSAL_IDS
    return asked


def told(result: GenerationResult) -> list[Any]:
    trace = result.trace
    alarms = [(alarm.place, alarm.signal) for alarm in trace.alarms]
    return [result.token_ids, trace.schemes, trace.matched, trace.bins, trace.forced, alarms]


def scores_of(result: GenerationResult) -> list[float]:
    trace = result.trace
    own = (score for name in SIGNALS for score in trace.signal_scores.get(name, ()))
    return [*trace.beginning_scores, *trace.risk_scores, *own]
