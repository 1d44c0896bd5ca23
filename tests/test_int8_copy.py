"""Int8 on a CPU as the default: when it is meant, and the copy on disk that makes it ready sooner."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from package_index import cache  # noqa: F401 (a fixture)
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine.errors import ModelLoadError
from ssd_engine.models import int8_copy
from ssd_engine.models.checkpoints import LoadOptions, load_model, load_tokenizers
from ssd_engine.models.int8_copy import Int8Copy
from ssd_engine.models.pair import PairSpec

INT8 = LoadOptions(quantization="int8", device="cpu")
TOKENS = torch.arange(3, 40)[None]


@pytest.fixture
def converted(cache: Path) -> Path:
    """The folder of a model as a preset's is kept."""
    model = make_model(5, 320).bfloat16()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases are ones and zeros at first
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = [2, 0]
    folder = cache / "converted" / "Some-Model"
    model.save_pretrained(folder)
    (folder / "ssd-manifest.json").write_text(json.dumps({"sha256": "00"}), encoding="utf-8")
    return folder


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model(TOKENS).logits
    return found


def from_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """What the model says where no copy is kept of it."""
    with monkeypatch.context() as patched:
        patched.setattr(Int8Copy, "of", lambda source, adapter: None)
        return logits(load_model(folder, INT8))


def test_a_copy_is_the_model_that_is_quantized_from_its_weights(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = from_weights(converted, monkeypatch)
    assert torch.equal(logits(load_model(converted, INT8)), expected)
    for weights in converted.glob("*.safetensors"):
        weights.unlink()
    model = load_model(converted, INT8)
    assert torch.equal(logits(model), expected), "from the copy alone"
    assert model.generation_config.eos_token_id == [2, 0]
    assert not [layer for layer in model.modules() if type(layer) is nn.Linear]


def test_a_copy_of_other_weights_is_made_anew(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model(converted, INT8)
    make_model(6, 320).bfloat16().save_pretrained(converted)
    (converted / "ssd-manifest.json").write_text(json.dumps({"sha256": "11"}), encoding="utf-8")
    assert torch.equal(logits(load_model(converted, INT8)), from_weights(converted, monkeypatch))


def test_where_no_copy_can_be_kept_the_model_is_quantized_at_every_start(
    converted: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(int8_copy, "save_file", full)
    with caplog.at_level(logging.WARNING):
        model = load_model(converted, INT8)
    assert "Some-Model is quantized at every start" in caplog.text
    assert "No space left on device" in caplog.text
    assert torch.equal(logits(model), from_weights(converted, monkeypatch))
    assert not list((converted.parent.parent / "int8").glob("*/")), "nothing half made is left"


def test_only_models_of_presets_are_copied(converted: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    make_model(7, 320).bfloat16().save_pretrained(own)
    load_model(own, INT8)
    assert not (converted.parent.parent / "int8").exists()
    assert Int8Copy.of(converted, tmp_path) is None, "nor one with a user's adapter"


def test_the_default_pair_is_int8_on_a_cpu_where_nothing_else_is_said() -> None:
    def is_int8(**options: Any) -> list[bool]:
        return [how.is_int8 for how in LoadOptions.of(PairSpec(device="cpu", **options))]

    assert is_int8() == [True, True]
    assert is_int8(quantization="none") == [False, False]
    assert is_int8(target_quantization="none") == [False, True]
    assert is_int8(dtype="bfloat16") == [False, False], "a type of the weights that is asked for is had"
    assert is_int8(dtype="bfloat16", quantization="int8") == [True, True]
    assert is_int8(preset="qwen2.5-7b") == [False, False]
    assert is_int8(target="org/large", draft="org/small") == [False, False]
    assert is_int8(target="org/large", draft="org/small", quantization="auto") == [True, True]
    assert not LoadOptions(quantization="auto", device="cuda").is_int8
    with pytest.raises(ModelLoadError, match=r"quantization='int3' is unknown.*'auto'"):
        LoadOptions(quantization="int3")


def test_a_fixed_number_is_drafted_on_vllm_where_the_preset_says_auto() -> None:
    assert PairSpec().settings.num_draft_tokens == "auto"
    assert PairSpec(backend="vllm").settings.num_draft_tokens == 3


def test_models_with_the_same_tokenizer_files_share_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    for name in ("target", "draft"):
        tokenizer.save_pretrained(tmp_path / name)
    spec = PairSpec(target=str(tmp_path / "target"), draft=str(tmp_path / "draft"))
    target, draft = load_tokenizers(spec)
    assert target is draft
    (tmp_path / "draft" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    target, draft = load_tokenizers(spec)
    assert target.chat_template != draft.chat_template
