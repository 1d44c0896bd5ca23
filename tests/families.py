"""Small random models of several families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 64
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}

CAUSAL = [
    pytest.param(LlamaForCausalLM, LlamaConfig(**_SIZES, num_key_value_heads=2), id="llama"),
    pytest.param(Qwen2ForCausalLM, Qwen2Config(**_SIZES, num_key_value_heads=2), id="qwen2"),
    pytest.param(GemmaForCausalLM, GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=8), id="gemma"),
    pytest.param(GPTNeoXForCausalLM, GPTNeoXConfig(**_SIZES), id="gpt-neox"),
    pytest.param(
        GPT2LMHeadModel, GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256), id="gpt2"
    ),
]
WINDOWED = [
    pytest.param(
        MistralForCausalLM, MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=24), id="mistral-window"
    ),
    pytest.param(
        Gemma2ForCausalLM,
        Gemma2Config(**_SIZES, num_key_value_heads=1, head_dim=8, sliding_window=24),
        id="gemma2-window-softcap",
    ),
]


def build(family: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return family(config).eval()
