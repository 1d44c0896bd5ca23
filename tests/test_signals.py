"""Signals beside the match ratio: what they score, when they ask for Union, and what is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, make_relative
from reference import next_logits
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, GenerationResult, Grammar, SafetyTrace, Scheme, SSDConfig, SSDEngine
from ssd_engine.backends.transformers.loader import fingerprint
from ssd_engine.config import SIGNALS, Signal, SignalConfig
from ssd_engine.draft_signals import DraftSignals, Probe
from ssd_engine.errors import InvalidRequestError, JailbreakRiskError, ModelLoadError
from ssd_engine.signals import Alarm, SignalControl

REFUSAL_IDS = tuple(range(40, 400, 24))
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
    weight = torch.randn(32, generator=torch.Generator().manual_seed(3))
    probe = Probe(layer=2, weight=weight, bias=-0.5, threshold=0.7, false_alarm_rate=0.01)
    return DraftSignals(refusal_ids=REFUSAL_IDS, probe=probe, fingerprint=fingerprint(pair[1]))


@pytest.fixture(scope="module")
def engine(
    pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast, signals: DraftSignals
) -> Iterator[SSDEngine]:
    with SSDEngine(*pair, tokenizer, signals=signals, name="heard") as engine:
        yield engine


def config(hold: int = 3, **settings: Any) -> SSDConfig:
    """All signals, at thresholds that these models pass now and then; `settings` of the rest, or other thresholds."""
    thresholds = {name: settings.pop(name) for name in SIGNALS if name in settings}
    thresholds = thresholds or {"refusal_mass": 0.3, "probe": 0.9, "kl": 0.4}
    return SSDConfig(signals={**thresholds, "hold": hold}, **settings)


# -- The rule --


def walk(control: SignalControl, scores: list[float], token_ids: list[int] | None = None) -> str:
    """Where Union is asked for ("u") at places with these scores of the probe."""
    asked = ""
    for score, token_id in zip(scores, token_ids or [0] * len(scores), strict=True):
        control.look({"probe": score})
        asked += "u" if control.asks_for_union else "-"
        control.leave(token_id)
    return asked


def test_an_alarm_holds_for_its_own_place_and_those_after_it() -> None:
    for hold, expected in ((1, "-u------"), (3, "-uuu----"), (9, "-uuuuuuu")):
        assert walk(SignalControl(SignalConfig(probe=0.5, hold=hold)), [0, 0.5, 0, 0, 0, 0, 0, 0]) == expected


def test_a_later_alarm_prolongs_what_an_earlier_one_asked_for() -> None:
    control = SignalControl(SignalConfig(probe=0.5, hold=3))
    assert walk(control, [0.9, 0, 0.7, 0, 0, 0]) == "uuuuu-"


def test_a_refusal_that_begins_under_an_alarm_is_finished_under_union() -> None:
    for place, expected in ((1, "-uu----"), (2, "-uuuuuu"), (3, "-uu----")):
        control = SignalControl(SignalConfig(probe=0.5, hold=2), refusal_ids={7})
        token_ids = [7 if here == place else 0 for here in range(7)]
        if place == 1:
            token_ids[0:2] = [7, 0]  # nothing is wrong yet: a word is no refusal
        assert walk(control, [0, 0.5, 0, 0, 0, 0, 0], token_ids) == expected


def test_only_what_makes_union_asked_for_counts_as_raised() -> None:
    control = SignalControl(SignalConfig(probe=0.5, kl=0.5, hold=2))
    raised = []
    for probe, kl in ((0, 0.5), (0.6, 0.6), (0, 0), (0, 0), (0.6, 0.7)):
        raised.append(control.look({"probe": probe, "kl": kl}).raised)
        control.leave(0)
    assert raised == [("kl",), (), (), (), ("probe", "kl")]


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


@pytest.mark.parametrize("seed", range(6))
def test_scores_and_schemes_are_what_the_rule_says(
    pair: tuple[PreTrainedModel, PreTrainedModel], engine: SSDEngine, signals: DraftSignals, seed: int
) -> None:
    prompt = [5 + seed, 90, 33]
    settings = config(hold=1 + seed, **CALM)
    assert settings.signals is not None
    result = engine.generate(prompt, GenerationParams(max_new_tokens=40, ssd=settings))
    places = [expected_scores(pair, signals, prompt + result.token_ids[:place]) for place in range(40)]
    for name in SIGNALS:
        assert result.trace.signal_scores[name] == pytest.approx([each[name] for each in places], abs=1e-4)
    assert result.trace.risk_scores == pytest.approx([max(each.values()) for each in places], abs=1e-4)
    asked = expected_union(places, list(result.token_ids), settings.signals)
    assert [scheme is Scheme.UNION for scheme in result.trace.schemes] == asked
    assert 0 < sum(asked)


def told(result: GenerationResult) -> list[Any]:
    trace = result.trace
    alarms = [(alarm.place, alarm.signal) for alarm in trace.alarms]
    return [result.token_ids, trace.schemes, trace.matched, trace.bins, trace.forced, alarms]


def scores_of(result: GenerationResult) -> list[float]:
    trace = result.trace
    own = (score for name in SIGNALS for score in trace.signal_scores[name])
    return [*trace.beginning_scores, *trace.risk_scores, *own]


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"temperature": 1.2, "seed": 11, "top_p": 0.9}, id="sampled"),
        pytest.param({"grammar": Grammar(regex=r"(quick brown fox|lazy|dog)(, (jumps|[a-z ]{3,9}))*\.")}, id="grammar"),
        pytest.param({"continue_final_message": True}, id="continued"),
    ],
)
@pytest.mark.parametrize("is_calm", [True, False])
def test_answers_do_not_depend_on_the_number_of_drafts(
    engine: SSDEngine, params: dict[str, Any], is_calm: bool
) -> None:
    settings = config(**(CALM if is_calm else {"bin_size": 3}))
    messages = BEGUN if "continue_final_message" in params else QUESTION
    answers = [
        engine.generate(
            messages, GenerationParams(max_new_tokens=40, ssd=settings.replaced(num_draft_tokens=length), **params)
        )
        for length in range(1, 7)
    ]
    for answer in answers[1:]:
        assert told(answer) == told(answers[0])
        assert scores_of(answer) == pytest.approx(scores_of(answers[0]), abs=1e-4)
    assert answers[0].trace.alarms
