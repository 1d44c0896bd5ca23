"""Loading pairs: folders, GGUF, adapters, int8, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import DraftSignals, GenerationParams, SSDConfig, SSDEngine
from ssd_engine.config import SignalConfig
from ssd_engine.errors import InvalidRequestError, ModelLoadError
from ssd_engine.models import memory, presets
from ssd_engine.models.fetch import fetch
from ssd_engine.models.linear import HalfLinear, Int8Linear, PackedLinear
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.presets import GGUFSource, Preset, get_preset
from ssd_engine.registry import shared_engine

PARAMS = GenerationParams(max_new_tokens=20)
PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def folders(
    tiny_pair: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """The tiny pair saved as safetensors."""
    saved = []
    for name, model in zip(("target", "draft"), tiny_pair, strict=True):
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        saved.append(folder)
    return saved[0], saved[1]


def test_a_pair_from_folders_answers_as_in_memory(folders: tuple[Path, Path], tiny_engine: SSDEngine) -> None:
    with SSDEngine.from_pretrained(*folders) as engine:
        assert engine.generate(PROMPT, PARAMS).token_ids == tiny_engine.generate(PROMPT, PARAMS).token_ids


@pytest.mark.parametrize("quantized", [{"draft_quantization": "int8"}, {"target_quantization": "int8"}])
def test_either_model_can_be_int8(quantized: dict[str, str], folders: tuple[Path, Path]) -> None:
    with SSDEngine.from_pretrained(*folders, device="cpu", **quantized) as engine:
        result = engine.generate(PROMPT, PARAMS)
    assert len(result.token_ids) == 20
    assert result.trace.match_rate > 0


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float32])
def test_dtype_and_device_map_are_honoured(dtype: str | torch.dtype, folders: tuple[Path, Path]) -> None:
    with SSDEngine.from_pretrained(*folders, dtype=dtype, device_map={"": "cpu"}) as engine:
        assert engine.generate(PROMPT, PARAMS).token_ids


SIXTEEN_BIT = [layer for layer in (PackedLinear, HalfLinear) if layer.is_available()]
"""What this processor has kernels for."""


@pytest.mark.parametrize("make", SIXTEEN_BIT)
def test_16_bit_layers_compute_what_linear_layers_do(make: type[PackedLinear | HalfLinear]) -> None:
    torch.manual_seed(0)
    computed_in = torch.bfloat16 if make is PackedLinear else torch.float32
    for bias in (False, True):
        linear = nn.Linear(96, 64, bias=bias, dtype=torch.bfloat16)
        for rows in (1, 3, 40):
            x = torch.randn(1, rows, 96, dtype=computed_in)
            with torch.inference_mode():
                torch.testing.assert_close(make(linear)(x), linear.to(computed_in)(x))
                linear.to(torch.bfloat16)


def test_weights_past_float16_are_left_as_they_are(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A bfloat16 checkpoint with a weight that float16 cannot hold answers all the same."""
    model = make_model(1, 402).to(torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folders[0] / name).read_text())
    expected = model.generate(torch.tensor([[9, 8, 7]]), max_new_tokens=1, do_sample=False)[0, -1].item()
    with SSDEngine.from_pretrained(tmp_path, folders[1]) as engine:
        result = engine.generate([9, 8, 7], GenerationParams(max_new_tokens=1, decoding="target"))
    assert result.token_ids == [expected]


def test_int8_rows_do_not_depend_on_each_other() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(256, 64))
    rows = torch.randn(1, 9, 256) * torch.logspace(-2, 2, 9)[:, None]
    with torch.inference_mode():
        together = layer(rows)
        for index in range(9):
            assert torch.equal(layer(rows[:, index : index + 1]), together[:, index : index + 1])


@pytest.mark.parametrize("bias", [False, True])
def test_int8_layers_come_close_to_linear_layers_row_by_row(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 64, bias=bias)
    x = torch.randn(1, 5, 256)
    x[0, 0] *= 1000  # as the first token of some models
    with torch.inference_mode():
        exact, quantized = linear(x), Int8Linear(linear)(x)
    assert bool(((exact - quantized).norm(dim=-1) / exact.norm(dim=-1) < 0.02).all())


def save_adapter(draft: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Save a random adapter; returns the draft with it merged."""
    import copy

    torch.manual_seed(5)
    wrapped = get_peft_model(
        copy.deepcopy(draft), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload()


def test_an_adapter_is_merged_into_the_draft(
    folders: tuple[Path, Path],
    tiny_pair: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    merged = save_adapter(tiny_pair[1], tmp_path)
    with SSDEngine(tiny_pair[0], merged, tokenizer) as engine:
        expected = engine.generate(PROMPT, PARAMS)
    with SSDEngine.from_pretrained(*folders, draft_adapter=tmp_path) as engine:
        adapted = engine.generate(PROMPT, PARAMS)
    assert adapted.token_ids == expected.token_ids
    assert adapted.trace.matched == expected.trace.matched


def test_a_presets_adapter_is_merged_unless_it_is_declined(
    folders: tuple[Path, Path], tiny_pair: tuple[PreTrainedModel, PreTrainedModel], tmp_path: Path, monkeypatch: Any
) -> None:
    target, draft = map(str, folders)
    safe_config = SSDConfig(signals=SignalConfig(refusal_mass=0.5))
    preset = Preset(
        name="tiny",
        description="Small and random.",
        target=folders[0],
        draft=folders[1],
        licence="none",
        context_length=64,
        config=SSDConfig(num_draft_tokens=4),
        safe_draft=presets.SafeDraft(
            name="tiny", source=folders[1], licence="none", context_length=64, config=safe_config
        ),
    )
    monkeypatch.setitem(presets.PRESETS, "tiny", preset)
    monkeypatch.setattr(presets, "_ADAPTERS", tmp_path)
    save_adapter(tiny_pair[1], tmp_path / "tiny")
    DraftSignals(refusal_ids=(5,)).save(tmp_path / "tiny")

    def matches(engine: SSDEngine) -> list[bool]:
        with engine:
            return engine.generate(PROMPT, PARAMS).trace.matched

    plain = matches(SSDEngine.from_pretrained(target, draft))
    adapted = matches(SSDEngine.from_pretrained(target, draft, draft_adapter=tmp_path / "tiny"))
    assert adapted != plain
    assert matches(SSDEngine.from_preset("tiny")) == adapted
    assert matches(shared_engine(PairSpec(preset="tiny"))) == adapted
    assert matches(SSDEngine.from_preset("tiny", draft_adapter="none")) == plain
    assert matches(shared_engine(PairSpec(preset="tiny", draft_adapter="none"))) == plain
    for adapter, config in ((None, safe_config), ("none", preset.config)):
        with SSDEngine.from_preset("tiny", draft_adapter=adapter) as engine:
            assert engine.config == config
            assert bool(engine.generate(PROMPT, PARAMS).trace.risk_scores) is (adapter is None)


def test_weights_that_do_not_fit_are_told_before_they_are_read(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    with pytest.raises(ModelLoadError, match=r"needs at least 0\.\d\d GB of memory, and 0\.00 GB are"):
        SSDEngine.from_pretrained(*folders)


def test_caches_leave_room_for_weights_that_are_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 20_000)
    cpu = torch.device("cpu")
    assert memory.plan_positions(1, 64, None, cpu) == 10_000
    assert memory.plan_positions(1, 64, None, cpu, reserved_bytes=12_000) == 4_000
    with pytest.raises(ModelLoadError, match="kv_cache_bytes=9000 asks for"):
        memory.plan_positions(1, 64, None, cpu, 9000, reserved_bytes=12_000)


def test_pickled_weights_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folders[0] / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text((folders[0] / "tokenizer.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pickled weights \(pytorch_model\.bin\).*safetensors"):
        SSDEngine.from_pretrained(tmp_path, folders[1])


def test_a_pickled_adapter_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"adapter_model\.bin"):
        SSDEngine.from_pretrained(*folders, draft_adapter=tmp_path)


def test_remote_code_is_not_run(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folders[0] / name).read_text())
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelLoadError):
        SSDEngine.from_pretrained(tmp_path, folders[1])
    assert not (tmp_path / "ran").exists()


def test_unknown_and_unreachable_models_say_what_to_do(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=r"'org/none'.*hub id that can be reached"):
        SSDEngine.from_pretrained("org/none", folders[1])
    with pytest.raises(ModelLoadError, match=r"none\.gguf' does not exist"):
        SSDEngine.from_pretrained(tmp_path / "none.gguf", folders[1])
    with pytest.raises(ModelLoadError, match="'org/adapter'"):
        SSDEngine.from_pretrained(*folders, draft_adapter="org/adapter")


def test_unknown_options_are_named(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ModelLoadError, match="quantization='int3'"):
        SSDEngine.from_pretrained(*folders, draft_quantization="int3")
    with pytest.raises(ModelLoadError, match="dtype='float17'"):
        SSDEngine.from_pretrained(*folders, dtype="float17")
    with pytest.raises(ModelLoadError, match=r"nothing.*qwen2\.5-coder-1\.5b"):
        SSDEngine.from_preset("nothing")


def test_one_engine_a_pair_in_a_process(folders: tuple[Path, Path]) -> None:
    target, draft = map(str, folders)
    engine = shared_engine(PairSpec(target=target, draft=draft))
    assert (
        shared_engine(PairSpec(target=target, draft=draft, dtype="auto", draft_adapter=None, compile=False)) is engine
    )
    engine.close()
    again = shared_engine(PairSpec(target=target, draft=draft))
    assert again is not engine
    again.close()
    with pytest.raises(InvalidRequestError, match="give both models"):
        shared_engine(PairSpec(target=target))
    with pytest.raises(InvalidRequestError, match="both name a pair"):
        shared_engine(PairSpec(target=target, draft=draft, preset="qwen2.5-coder-1.5b"))


def test_a_gguf_file_loads_and_answers() -> None:
    source = get_preset("smollm2-135m").target
    assert isinstance(source, GGUFSource)
    file = fetch(source)
    with SSDEngine.from_pretrained(file, file, draft_quantization="int8") as engine:
        result = engine.generate([{"role": "user", "content": "What is the capital of France?"}], PARAMS)
    assert "Paris" in result.text
