"""What signals are read with: kept beside a draft, checked, and read in every way that a model runs."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CAUSAL, VOCAB, WINDOWED, build
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from signal_cases import BEGUN, QUESTION, config, engine, hidden, pair, scores_of, signals, told  # noqa: F401 (fixtures)
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SSDConfig, SSDEngine
from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.errors import InvalidRequestError, ModelLoadError
from ssd_engine.models.checkpoints import fingerprint, stored_fingerprint
from ssd_engine.rule.draft_signals import DraftSignals

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
    assert loaded.break_ids == signals.break_ids
    assert loaded.fingerprint == signals.fingerprint
    assert loaded.probe is not None
    assert signals.probe is not None
    assert torch.equal(loaded.probe.weight, signals.probe.weight)
    assert [loaded.probe.layer, loaded.probe.bias, loaded.probe.threshold] == [2, -0.5, 0.7]
    without = DraftSignals(refusal_ids=(4, 5))
    without.save(tmp_path)
    assert DraftSignals.load(tmp_path) == without
    path = tmp_path / "signals.safetensors"
    save_file({"refusal_ids": torch.tensor([4, 5])}, path, metadata={"format": "1"})  # an older one
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
        ({"break_ids": (5, 9998)}, "token id 9998 begins a refusal"),
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
    model.set_attn_implementation("eager")  # transformers' faster ones have left Gemma 2's soft cap out
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
