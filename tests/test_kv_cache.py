"""Rollback and prefix reuse: what a model says depends on the tokens alone, not on how they came into the cache."""

from __future__ import annotations

import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from ssd_engine.backends.transformers.prefix_store import block_ends
from ssd_engine.backends.transformers.runner import ModelRunner, Row
from ssd_engine.errors import ModelLoadError

VOCAB = 64
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
MODEL = make_model(0, VOCAB)


def read_prompt(runner: ModelRunner, prompt: list[int], room: int = 64) -> Row:
    row = runner.open(prompt, room)
    while row.next_block:
        runner.read_block(row)
    return row


def last_logits(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0, -1]


tokens = st.integers(0, VOCAB - 1)


@given(
    st.lists(tokens, min_size=1, max_size=40),
    st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=5), st.lists(tokens, min_size=1, max_size=5)), max_size=6),
)
@settings(max_examples=60)
def test_rolled_back_tokens_leave_no_trace(prompt: list[int], rounds: list[tuple[list[int], list[int]]]) -> None:
    """Each round reads guesses, then lets other tokens stand in their place."""
    runner = ModelRunner(MODEL, VOCAB, 0)
    with torch.inference_mode():
        row = read_prompt(runner, prompt)
        for guessed, standing in rounds:
            position = len(row.token_ids)
            row.token_ids += guessed
            runner.forward([row], [1])
            row.replace_from(position, standing)
            if not row.unread:  # the guess was right: the model has nothing left to read
                row.cache.roll_back(row.cache.length - 1)
        logits = runner.forward([row], [1])[0][-1]
    torch.testing.assert_close(logits, last_logits(MODEL, row.token_ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(LlamaForCausalLM(LlamaConfig(**_SIZES, num_key_value_heads=2)), id="llama"),
        pytest.param(
            MistralForCausalLM(MistralConfig(**_SIZES, num_key_value_heads=2, sliding_window=24)),
            id="mistral-sliding-window",
        ),
        pytest.param(GemmaForCausalLM(GemmaConfig(**_SIZES, num_key_value_heads=1, head_dim=8)), id="gemma"),
        pytest.param(GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES)), id="gpt-neox"),
    ],
)
def test_model_families_decode_from_the_cache_as_without_one(model: PreTrainedModel) -> None:
    model = model.eval()
    runner = ModelRunner(model, VOCAB, 0)
    prompt = [(7 * i) % VOCAB for i in range(90)]
    with torch.inference_mode():
        row = read_prompt(runner, prompt)
        for step in range(12):
            row.token_ids += [1, 2, 3]
            logits = runner.forward([row], [1])[0][-1]
            torch.testing.assert_close(logits, last_logits(model, row.token_ids), atol=1e-4, rtol=1e-4)
            row.replace_from(len(row.token_ids) - 2, [step, step + 1])


def test_a_recurrent_model_is_refused() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelLoadError, match="mamba"):
        ModelRunner(model, VOCAB, 0)


@given(st.integers(1, 2000))
def test_blocks_leave_between_one_token_and_a_smallest_block(length: int) -> None:
    ends = block_ends(length, (64, 16))
    assert ends == sorted(set(ends))
    assert 1 <= length - (ends[-1] if ends else 0) <= 16


def test_a_prompt_read_again_is_reused_but_for_its_end() -> None:
    runner = ModelRunner(MODEL, VOCAB, 1 << 20)
    prompt = [i % VOCAB for i in range(150)]
    with torch.inference_mode():
        assert read_prompt(runner, prompt).cached_prompt_tokens == 0
        assert read_prompt(runner, prompt).cached_prompt_tokens == 144
        assert read_prompt(runner, [*prompt, *prompt]).cached_prompt_tokens == 128
        assert read_prompt(runner, [5, *prompt]).cached_prompt_tokens == 0


def test_reused_prefixes_give_the_very_same_bits() -> None:
    prompt = [i % VOCAB for i in range(150)]
    with torch.inference_mode():
        fresh = ModelRunner(MODEL, VOCAB, 0)
        cold = fresh.forward([read_prompt(fresh, prompt)], [1])[0]
        runner = ModelRunner(MODEL, VOCAB, 1 << 20)
        read_prompt(runner, prompt[:140])
        row = read_prompt(runner, prompt)
        assert row.cached_prompt_tokens > 0
        assert torch.equal(runner.forward([row], [1])[0], cold)


def test_the_least_recently_used_prefix_goes_first() -> None:
    runner = ModelRunner(MODEL, VOCAB, 0)
    one, two, three = ([start] * 100 for start in (1, 2, 3))
    with torch.inference_mode():
        runner.prefixes.max_bytes = 1 << 30
        read_prompt(runner, one)
        runner.prefixes.max_bytes = 2 * runner.prefixes.nbytes
        read_prompt(runner, two)
        read_prompt(runner, one)
        read_prompt(runner, three)
        assert runner.prefixes.nbytes <= runner.prefixes.max_bytes
        assert read_prompt(runner, one).cached_prompt_tokens > 0
        assert read_prompt(runner, three).cached_prompt_tokens > 0
        assert read_prompt(runner, two).cached_prompt_tokens == 0
