"""Signals beside the match ratio: what they score, when they ask for Union, and what is told of them."""

from __future__ import annotations

import asyncio
import copy
import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model, make_relative
from families import CAUSAL, VOCAB, WINDOWED, build
from peft import LoraConfig, get_peft_model
from reference import next_logits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, GenerationResult, Grammar, SafetyTrace, Scheme, SSDConfig, SSDEngine
from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.config import SIGNALS, Signal, SignalConfig
from ssd_engine.errors import InvalidRequestError, JailbreakRiskError, ModelLoadError
from ssd_engine.models.checkpoints import fingerprint, stored_fingerprint
from ssd_engine.rule.draft_signals import DraftSignals, Probe
from ssd_engine.rule.signals import Alarm

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
    weight = 0.1 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    probe = Probe(layer=2, weight=weight, bias=-0.5, threshold=0.7, false_alarm_rate=0.01)
    return DraftSignals(refusal_ids=REFUSAL_IDS, probe=probe, fingerprint=fingerprint(pair[1]))


@pytest.fixture(scope="module")
def engine(
    pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast, signals: DraftSignals
) -> Iterator[SSDEngine]:
    with SSDEngine(*pair, tokenizer, signals=signals, name="heard") as engine:
        yield engine


def config(hold: int = 3, smoothing: int = 1, **settings: Any) -> SSDConfig:
    """All signals, at thresholds that these models pass now and then; `settings` of the rest, or other thresholds."""
    thresholds = {name: settings.pop(name) for name in SIGNALS if name in settings}
    thresholds = thresholds or {"refusal_mass": 0.3, "probe": 0.9, "kl": 0.4}
    return SSDConfig(signals={**thresholds, "hold": hold, "smoothing": smoothing}, **settings)


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
    smoothing = 1 + seed % 3
    settings = config(hold=1 + seed, smoothing=smoothing, **CALM)
    assert settings.signals is not None
    result = engine.generate(prompt, GenerationParams(max_new_tokens=40, ssd=settings))
    places = [expected_scores(pair, signals, prompt + result.token_ids[:place]) for place in range(40)]
    for before, here in itertools.pairwise(places):
        here.update({name: before[name] + (score - before[name]) / smoothing for name, score in here.items()})
    for name in SIGNALS:
        assert result.trace.signal_scores[name] == pytest.approx([each[name] for each in places], abs=1e-4)
    assert result.trace.risk_scores == pytest.approx([max(each.values()) for each in places], abs=1e-4)
    asked = expected_union(places, list(result.token_ids), settings.signals)
    assert [scheme is Scheme.UNION for scheme in result.trace.schemes] == asked
    assert sum(asked) > 0


def told(result: GenerationResult) -> list[Any]:
    trace = result.trace
    alarms = [(alarm.place, alarm.signal) for alarm in trace.alarms]
    return [result.token_ids, trace.schemes, trace.matched, trace.bins, trace.forced, alarms]


def scores_of(result: GenerationResult) -> list[float]:
    trace = result.trace
    own = (score for name in SIGNALS for score in trace.signal_scores.get(name, ()))
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


def test_a_given_beginning_is_scored_place_by_place(
    pair: tuple[PreTrainedModel, PreTrainedModel], engine: SSDEngine, signals: DraftSignals
) -> None:
    """The beginning's own tokens, each at its place; KL is not told there, and the prompt before it is not scored."""
    encode = engine.tokenizer.encode
    before = encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    given = encode(BEGUN[-1]["content"])
    result = engine.generate(BEGUN, GenerationParams(max_new_tokens=4, continue_final_message=True, ssd=config()))
    assert result.usage.prompt_tokens == len(before + given)
    places = [expected_scores(pair, signals, before + given[:place]) for place in range(len(given))]
    expected = [max(each["refusal_mass"], each["probe"]) for each in places]
    assert result.trace.beginning_scores == pytest.approx(expected, abs=1e-4)


def test_a_beginning_can_bring_union_for_the_first_token(engine: SSDEngine) -> None:
    params = GenerationParams(max_new_tokens=12, continue_final_message=True)
    free = engine.generate(BEGUN, params.replaced(ssd=config(probe=1.0, **CALM)))
    scores = free.trace.beginning_scores
    # The only place past the threshold is one of the beginning.
    highest = max(scores)
    assert highest > max(free.trace.signal_scores["probe"][:3])
    last = len(scores) - 1 - scores[::-1].index(highest)
    hold = len(scores) - last + 2
    result = engine.generate(BEGUN, params.replaced(ssd=config(probe=highest, hold=hold, **CALM)))
    assert result.trace.schemes[:2] == [Scheme.UNION] * 2
    assert result.trace.alarms[0] == Alarm(
        place=last - len(scores), signal="probe", score=scores[last], threshold=highest
    )
    assert result.trace.risk == "elevated"


def test_a_beginning_has_its_scores_also_where_the_prompt_was_kept(
    pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast, signals: DraftSignals
) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 8
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    params = GenerationParams(max_new_tokens=8, continue_final_message=True, ssd=config())
    with SSDEngine(*pair, tokenizer, signals=signals) as engine:
        first, again = (engine.generate(messages, params) for _ in range(2))
    assert again.usage.cached_prompt_tokens > 0
    assert len(first.trace.beginning_scores) > 100
    assert told(again) == told(first)
    assert scores_of(again) == scores_of(first)


def test_a_beginning_that_starts_with_what_joins_the_template_is_found(engine: SSDEngine) -> None:
    """Line ends before the text become one token with the template's own."""
    params = GenerationParams(max_new_tokens=2, continue_final_message=True, ssd=config())
    for content in ("\n\nParis", "P", "<|im_end|>Paris"):
        result = engine.generate([*QUESTION, {"role": "assistant", "content": content}], params)
        assert 0 < len(result.trace.beginning_scores) <= len(engine.encode(content)) + 1


def test_without_signals_and_in_baselines_nothing_is_scored(engine: SSDEngine) -> None:
    plain = engine.generate(QUESTION, GenerationParams(max_new_tokens=8))
    assert plain.trace.risk_scores == []
    assert plain.trace.signal_scores == plain.trace.signal_thresholds == {}
    assert "alarms" not in plain.trace.summary()
    for decoding in ("speculative", "target"):
        baseline, bare = (
            engine.generate(QUESTION, GenerationParams(max_new_tokens=8, decoding=decoding, ssd=settings))
            for settings in (config(), None)
        )
        assert baseline.token_ids == bare.token_ids
        assert not baseline.trace.risk_scores


def test_thresholds_that_nothing_passes_change_nothing(engine: SSDEngine) -> None:
    for prompt in ("The quick brown fox", "naïve café", "system"):
        plain, heard = (
            engine.generate(prompt, GenerationParams(max_new_tokens=40, ssd=settings))
            for settings in (SSDConfig(), SSDConfig(signals=dict.fromkeys(SIGNALS, 1.0)))
        )
        assert told(heard) == told(plain)


def test_each_request_of_a_batch_has_its_own_signals(engine: SSDEngine) -> None:
    settings = [config(), None, config(probe=0.6, hold=1), config(kl=0.5, hold=20), config(refusal_mass=0.2)]
    requests = [
        GenerationParams(max_new_tokens=20, ssd=each, temperature=index % 2, seed=index)
        for index, each in enumerate(settings)
    ]
    alone = [engine.generate(f"The quick {i}", params) for i, params in enumerate(requests)]

    async def together() -> list[GenerationResult]:
        return await asyncio.gather(*(engine.agenerate(f"The quick {i}", each) for i, each in enumerate(requests)))

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert told(one) == told(other)
        assert scores_of(one) == pytest.approx(scores_of(other), abs=1e-4)


def test_forced_tokens_have_no_score_and_do_not_count_as_places(engine: SSDEngine) -> None:
    """An alarm at the first token holds for the second, whatever a grammar forces between them."""
    grammar = Grammar(regex=r"[abc]quick brown fox[abc]quick brown fox[abc]quick brown fox")
    settings = config(hold=2, probe=0.0, **CALM)
    result = engine.generate(QUESTION, GenerationParams(max_new_tokens=60, grammar=grammar, ssd=settings))
    trace = result.trace
    assert sum(trace.forced) > 10
    assert set(trace.schemes) == {Scheme.UNION}
    assert [score for score, forced in zip(trace.risk_scores, trace.forced, strict=True) if forced] == [0.0] * sum(
        trace.forced
    )


# -- on_risk --


def test_a_function_is_asked_where_an_alarm_is_raised(engine: SSDEngine) -> None:
    settings = config(probe=0.8, bin_size=50, hold=2)
    asked: list[int] = []

    def note(trace: SafetyTrace) -> None:
        asked.append(len(trace.schemes))
        assert trace.alarms[-1].place == len(trace.schemes) - 1

    result = engine.generate(QUESTION, GenerationParams(max_new_tokens=40, ssd=settings, on_risk=note))
    assert asked == [alarm.place + 1 for alarm in result.trace.alarms]
    assert len(asked) > 1


def test_refuse_counts_tokens_under_union_whoever_asked_for_it(engine: SSDEngine) -> None:
    settings = config(probe=0.0, bin_size=4, **CALM)
    params = GenerationParams(max_new_tokens=40, ssd=settings, risk_bins=2)
    result = engine.generate(QUESTION, params.replaced(on_risk="refuse"))
    assert result.finish_reason == "refused"
    assert len(result.token_ids) == 8
    with pytest.raises(JailbreakRiskError, match=r"Union held for 2 bins .* alarms: probe"):
        engine.generate(QUESTION, params.replaced(on_risk="raise"))
    assert engine.generate(QUESTION, params).finish_reason == "length"


# -- What signals are read with, and what can be wrong with it --


def test_signals_lie_beside_a_draft_and_are_loaded_with_it(
    pair: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    engine: SSDEngine,
    signals: DraftSignals,
    tmp_path: Path,
) -> None:
    for name, model in zip(("target", "draft"), pair, strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    signals.save(tmp_path / "draft")
    params = GenerationParams(max_new_tokens=20)
    with SSDEngine.from_pretrained(tmp_path / "target", tmp_path / "draft", config=config()) as loaded:
        result = loaded.generate(QUESTION, params)
    expected = engine.generate(QUESTION, params.replaced(ssd=config()))
    assert told(result) == told(expected)
    assert scores_of(result) == pytest.approx(scores_of(expected), abs=1e-4)


def test_signals_lie_beside_an_adapter(
    pair: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    signals: DraftSignals,
    tmp_path: Path,
) -> None:
    """They hold with the adapter that they lie beside; without it, or with an older one, there are none."""
    for name, model in zip(("target", "draft"), pair, strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    adapted = get_peft_model(copy.deepcopy(pair[1]), LoraConfig(r=2, target_modules=["q_proj"]))
    for name in ("adapter", "older"):
        adapted.save_pretrained(tmp_path / name)
    signals.save(tmp_path / "adapter")
    folders = tmp_path / "target", tmp_path / "draft"
    params = GenerationParams(max_new_tokens=4, ssd=config())
    with SSDEngine.from_pretrained(*folders, tmp_path / "adapter") as engine:
        assert len(engine.generate(QUESTION, params).trace.risk_scores) == 4
    for adapter in (tmp_path / "older", None, "none"):
        with (
            SSDEngine.from_pretrained(*folders, adapter) as engine,
            pytest.raises(InvalidRequestError, match="signals"),
        ):
            engine.generate(QUESTION, params)


def test_what_is_saved_is_loaded(signals: DraftSignals, tmp_path: Path) -> None:
    signals.save(tmp_path)
    loaded = DraftSignals.load(tmp_path)
    assert loaded.refusal_ids == signals.refusal_ids
    assert loaded.fingerprint == signals.fingerprint
    assert loaded.probe is not None
    assert signals.probe is not None
    assert torch.equal(loaded.probe.weight, signals.probe.weight)
    assert [loaded.probe.layer, loaded.probe.bias, loaded.probe.threshold] == [2, -0.5, 0.7]
    without = DraftSignals(refusal_ids=(4, 5))
    without.save(tmp_path)
    assert DraftSignals.load(tmp_path) == without


def test_a_request_whose_signals_are_not_there_is_told_which(
    tiny_engine: SSDEngine, pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    for name in ("refusal_mass", "probe"):
        with pytest.raises(InvalidRequestError, match=rf"signals\.{name}: the draft has no signals.safetensors"):
            tiny_engine.generate("Paris", GenerationParams(max_new_tokens=4, ssd=config(**{name: 0.5})))
    params = GenerationParams(max_new_tokens=4, ssd=config(kl=0.5))
    assert len(tiny_engine.generate("Paris", params).trace.risk_scores) == 4
    with pytest.raises(InvalidRequestError, match=r"signals\.probe"):
        SSDEngine(*pair, tokenizer, config=config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(31)}, "reads states of 31 numbers, and the draft's have 32"),
        ({"layer": 4}, "reads layer 4, and the draft has 3"),
        ({"fingerprint": "0" * 16}, "made for weights with the mark 0000000000000000"),
        ({"refusal_ids": (5, 9999)}, "token id 9999 begins a refusal"),
    ],
)
def test_signals_of_another_draft_are_refused(
    pair: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    signals: DraftSignals,
    changes: dict[str, Any],
    message: str,
) -> None:
    assert signals.probe is not None
    of_probe = {name: changes[name] for name in changes.keys() & {"weight", "layer"}}
    others = {name: changes[name] for name in changes.keys() - of_probe.keys()}
    changed = replace(signals, probe=replace(signals.probe, **of_probe), **others)
    with pytest.raises(ModelLoadError, match=message):
        SSDEngine(*pair, tokenizer, signals=changed)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"format": "2"}, "format '2'"),
        ({"threshold": "1.5"}, r"threshold=1\.5; give a number from 0 to 1"),
        ({"threshold": "nan"}, "threshold=nan"),
        ({"layer": "0"}, "layer=0"),
        ({"layer": "two"}, "two"),
    ],
)
def test_damaged_signals_are_told_of(
    signals: DraftSignals, tmp_path: Path, about: dict[str, str], message: str
) -> None:
    path = signals.save(tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata={**metadata, **about})
    with pytest.raises(ModelLoadError, match=message):
        DraftSignals.load(tmp_path)


def test_the_fingerprint_of_a_stored_draft_is_the_loaded_ones(
    pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path
) -> None:
    pair[1].save_pretrained(tmp_path)
    assert stored_fingerprint(tmp_path) == fingerprint(pair[1]) != fingerprint(pair[0])
    assert stored_fingerprint(tmp_path / "nowhere") is None


def test_a_file_that_is_none_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="cannot be read"):
        DraftSignals.load(tmp_path)
    (tmp_path / "signals.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelLoadError, match="make them anew with ssd align"):
        DraftSignals.load(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "signals.safetensors", metadata={"format": "1"})
    with pytest.raises(ModelLoadError, match="no 'refusal_ids'"):
        DraftSignals.load(tmp_path)


def test_settings_are_kept_and_read_again() -> None:
    settings = config()
    assert SSDConfig(**settings.model_dump()) == settings
    assert (
        SSDConfig(**{name: value for name, value in SSDConfig().model_dump().items() if name != "signals"})
        == SSDConfig()
    )


# -- Models that run in other ways --


@pytest.mark.parametrize(("family", "family_config"), [*CAUSAL, *WINDOWED])
def test_the_probe_reads_the_output_of_its_layer(family: type[PreTrainedModel], family_config: Any) -> None:
    model = build(family, family_config)
    token_ids = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = hidden(model, token_ids, 1)

    def num_hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.modules())

    before = num_hooks()
    runner = ModelRunner(model, VOCAB, layer=1)
    runner.allocate(64, 0)
    row = runner.open([0], 16)
    assert row is not None
    with torch.inference_mode():
        runner.forward([row], torch.tensor(token_ids), [len(token_ids)])
    assert runner.hidden is not None
    torch.testing.assert_close(runner.hidden[-1], expected)
    runner.shut_down()
    assert num_hooks() == before


def test_compiled_drafts_have_the_same_scores(
    pair: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    engine: SSDEngine,
    signals: DraftSignals,
) -> None:
    params = GenerationParams(max_new_tokens=20, continue_final_message=True, ssd=config())
    copies = [copy.deepcopy(model) for model in pair]
    with SSDEngine(*copies, tokenizer, signals=signals, compile=True) as compiled:
        result = compiled.generate(BEGUN, params)
    expected = engine.generate(BEGUN, params)
    assert told(result) == told(expected)
    assert scores_of(result) == pytest.approx(scores_of(expected), abs=1e-4)


def test_clients_do_not_wait_for_torch() -> None:
    code = "import sys; import ssd_engine; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
