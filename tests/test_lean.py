"""Lean passes: what transformers' own layers compute, and layers that read the same rows made one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import make_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ssd_engine.backends.transformers.lean import LeanPasses
from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.models.linear import HalfLinear, Int8Linear, PackedLinear, replace_linears
from ssd_engine.models.merged import MergedPart

SIZES: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
LEAN = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama, tied": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=32)),
}
TOKENS = torch.arange(5, 25)


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(1)
    kind, config = LEAN[name]
    model: PreTrainedModel = kind(copy.deepcopy(config)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases are ones and zeros at first
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def read(model: PreTrainedModel, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a prompt that is read in a pass, and the layer's output."""
    runner = ModelRunner(model, 200, layer=layer)
    runner.allocate(40, 0)
    row = runner.open(TOKENS.tolist(), 1)
    assert row is not None
    with torch.inference_mode():
        logits = runner.forward([row], TOKENS, [len(TOKENS)]).clone()
    assert runner.hidden is not None
    return logits, runner.hidden


@pytest.mark.parametrize("packed", [None, Int8Linear, HalfLinear, PackedLinear])
@pytest.mark.parametrize("name", LEAN)
def test_layers_run_as_one_call_and_where_that_cannot_be_as_python(
    name: str, packed: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = packed_model(name, packed)
    assert LeanPasses(model, None).is_one_call
    logits, hidden = read(model, layer=2)
    with monkeypatch.context() as patched:
        patched.setattr(torch.jit, "script", without_source)
        assert not LeanPasses(model, None).is_one_call
        python_logits, python_hidden = read(model, layer=2)
    assert "no source code here" in caplog.text
    assert torch.equal(logits, python_logits)
    assert torch.equal(hidden, python_hidden)


def without_source(*args: object) -> None:
    raise OSError("no source code here")


def packed_model(name: str, packed: Any) -> PreTrainedModel:
    if packed in (HalfLinear, PackedLinear) and not packed.is_available():
        pytest.skip("not on this processor, or not in this build of torch")
    model = model_of(name)
    if packed is PackedLinear:
        model.bfloat16()
    if packed is not None:
        replace_linears(model, packed)
    return model


@pytest.mark.parametrize("packed", [None, Int8Linear, HalfLinear])
@pytest.mark.parametrize("name", LEAN)
def test_a_lean_pass_computes_what_the_models_own_layers_do(name: str, packed: Any) -> None:
    model = packed_model(name, packed)
    assert LeanPasses.suits(model)
    with torch.inference_mode():
        own = model(TOKENS[None], output_hidden_states=True)
    logits, hidden = read(model, layer=2)
    torch.testing.assert_close(logits, own.logits[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden, own.hidden_states[2][0], rtol=1e-4, atol=1e-4)


def test_models_with_a_window_or_of_other_kinds_run_their_own_layers() -> None:
    assert not LeanPasses.suits(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)))
    other = LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu"))
    assert not LeanPasses.suits(other)


@pytest.mark.parametrize("packed", [Int8Linear, HalfLinear])
def test_merged_layers_give_what_each_of_them_gave(packed: Any) -> None:
    if packed is HalfLinear and not HalfLinear.is_available():
        pytest.skip("not in this build of torch")
    model = make_model(3, 200, hidden_size=64)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    names = {"q_proj": attention, "k_proj": attention, "v_proj": attention, "gate_proj": mlp, "up_proj": mlp}
    alone = {name: packed(copy.deepcopy(getattr(module, name))) for name, module in names.items()}
    replace_linears(model, packed)
    rows = torch.randn(1, 3, 64)
    for name, module in names.items():
        layer = getattr(module, name)
        assert isinstance(layer, MergedPart)
        torch.testing.assert_close(layer(rows), alone[name](rows), rtol=1e-5, atol=1e-6)
    other = torch.randn(1, 3, 64)
    torch.testing.assert_close(attention.k_proj(other), alone["k_proj"](other), rtol=1e-5, atol=1e-6)


def test_bfloat16_layers_stay_apart_since_a_wider_product_rounds_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    if not PackedLinear.is_available():
        pytest.skip("this processor does not multiply bfloat16")
    model = make_model(3, 200, hidden_size=64).bfloat16()
    replace_linears(model, PackedLinear)
    assert isinstance(model.model.layers[0].self_attn.k_proj, PackedLinear)
    logits, hidden = read(model, layer=1)
    with monkeypatch.context() as patched:
        patched.setattr(LeanPasses, "suits", lambda model: False)
        own_logits, own_hidden = read(model, layer=1)
    assert torch.equal(logits, own_logits)
    assert torch.equal(hidden, own_hidden)
