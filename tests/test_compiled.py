"""`compile=True`: the same answers, and no request pays for the compiler."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from conftest import make_model
from families import CAUSAL, VOCAB, WINDOWED, build
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SSDEngine
from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.errors import ModelLoadError
from ssd_engine.models.linear import HalfLinear, Int8Linear, PackedLinear, replace_linears

PROMPTS = ["The quick brown fox", "naïve café", "What is the capital of France? Paris, of course. " * 3, "system"]


@torch.inference_mode()
def logits(runner: ModelRunner) -> torch.Tensor:
    """Of one token of one row, then of several of two rows."""
    runner.allocate(128, 0)
    rows = [row for prompt in ([5], [6]) if (row := runner.open(prompt, 16)) is not None]
    alone = runner.forward(rows[:1], torch.tensor([5]), [1]).clone()
    together = runner.forward(rows, torch.tensor([7, 8, 6, 9, 10]), [2, 3])
    return torch.cat((alone, together))


def test_compiled_engines_answer_alike_and_compile_nothing_more(
    tiny_pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    params = GenerationParams(max_new_tokens=24)
    with SSDEngine(*tiny_pair, tokenizer=tokenizer) as engine:
        expected = [engine.generate(prompt, params).token_ids for prompt in PROMPTS]
    before = counters["stats"]["unique_graphs"]
    with SSDEngine(*tiny_pair, tokenizer=tokenizer, compile=True) as engine:
        compiled = counters["stats"]["unique_graphs"]
        assert compiled > before
        assert [engine.generate(prompt, params).token_ids for prompt in PROMPTS] == expected
        together = engine.batch(PROMPTS, params)
        assert [answer.token_ids for answer in together if not isinstance(answer, Exception)] == expected
        engine.generate("Paris", GenerationParams(max_new_tokens=8, decoding="target"))
        assert counters["stats"]["unique_graphs"] == compiled


def test_a_closed_engine_leaves_nothing_of_compiled_models_behind(tokenizer: PreTrainedTokenizerFast) -> None:
    target, draft = (make_model(seed, len(tokenizer), hidden_size=16) for seed in (0, 1))
    layer = weakref.ref(target.model.layers[0])
    with SSDEngine(target, draft, tokenizer, compile=True):
        assert "forward" in vars(target.model.layers[0])
    assert "forward" not in vars(target.model.layers[0])
    del target, draft
    gc.collect()
    assert layer() is None


@pytest.mark.parametrize(("family", "config"), CAUSAL)
def test_families_compile(family: type[PreTrainedModel], config: object) -> None:
    model = build(family, config)
    expected = logits(ModelRunner(copy.deepcopy(model), VOCAB))
    torch.testing.assert_close(logits(ModelRunner(model, VOCAB, compile=True)), expected, atol=1e-4, rtol=1e-4)


PACKED = [Int8Linear, *(layer for layer in (HalfLinear, PackedLinear) if layer.is_available())]


@pytest.mark.parametrize("make", PACKED)
def test_packed_layers_compile(make: Callable[[nn.Linear], nn.Module]) -> None:
    model = make_model(0, VOCAB)
    if make is PackedLinear:
        model.bfloat16()
    replace_linears(model, make)
    model = copy.deepcopy(model)  # a copy has weights of its own
    expected = logits(ModelRunner(model, VOCAB))
    computed = logits(ModelRunner(model, VOCAB, compile=True))
    torch.testing.assert_close(computed, expected, atol=0.05 * float(expected.abs().max()), rtol=0)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(0, VOCAB)
    monkeypatch.setattr(model, "_no_split_modules", [])
    with pytest.raises(ModelLoadError, match="does not name its layers"):
        ModelRunner(model, VOCAB, compile=True)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("family", "config"), WINDOWED)
def test_what_cannot_be_compiled_is_refused(family: type[PreTrainedModel], config: object) -> None:
    with pytest.raises(ModelLoadError, match=r"sliding window, which cannot be compiled; leave compile out"):
        ModelRunner(build(family, config), VOCAB, compile=True)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = make_model(0, VOCAB, hidden_size=48)
    # Its own patch: after pytest's, the setting would be gone for every test that follows.
    with (
        inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ModelLoadError, match=r"could not be compiled .*C\+\+ compiler"),
    ):
        ModelRunner(model, VOCAB, compile=True)
    assert not any("forward" in vars(module) for module in model.modules())
