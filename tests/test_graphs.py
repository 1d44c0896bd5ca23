"""Passes of fixed shape, which CUDA graphs need: the same logits as passes that are as long as their sequences."""

from __future__ import annotations

import copy

import pytest
import torch
from families import CAUSAL, VOCAB, WINDOWED, build
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ssd_engine import GenerationParams, SSDEngine
from ssd_engine.backends.transformers.graphs import StaticPass, bound_of
from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.models.forward import cache_argument


@pytest.mark.parametrize(("family", "config"), [*CAUSAL, *WINDOWED])
@torch.inference_mode()
def test_static_passes_compute_what_others_do(family: type[PreTrainedModel], config: object) -> None:
    """Three sequences of different lengths, side by side in the cache, in one pass."""
    model = build(family, config)
    runner = ModelRunner(model, VOCAB)
    runner.allocate(300, 0)
    first = runner.open([1], 1)
    assert first is not None
    runner.forward([first], torch.tensor([1]), [1])
    runner.close(first)
    for layer in runner.cache.layers:  # as on a GPU, where the memory is cleared when it is taken
        for states in (layer.keys, layer.values):
            assert states is not None
            states.zero_()
    prompts = [[3 * i % VOCAB for i in range(length)] for length in (40, 1, 70)]
    rows = [row for prompt in prompts if (row := runner.open(prompt, 8)) is not None]
    for row in rows:
        while row.next_block:
            runner.read_block(row)
    token_ids, counts = torch.tensor([5, 6, 7, 8, 9, 10]), [3, 1, 2]
    positions = [row.length + i for row, count in zip(rows, counts, strict=True) for i in range(count)]
    written = [row.stretch[row.length + i] for row, count in zip(rows, counts, strict=True) for i in range(count)]
    expected = runner.forward(rows, token_ids, counts)
    torch.manual_seed(0)
    for layer in runner.cache.layers:  # what is not read yet, or is left over, may be anything
        for states in (layer.keys, layer.values):
            assert states is not None
            for row, count in zip(rows, counts, strict=True):
                after = slice(row.stretch[row.length - count], row.stretch.stop)
                states[:, :, after] = 100 * torch.randn_like(states[:, :, after])

    step = StaticPass(runner.cache, len(token_ids), bound_of(max(written) + 1, runner.cache.positions), runner.device)
    step.load(token_ids, positions, written)
    for _ in range(2):  # a replay finds what the first run has written
        logits = step.run(
            lambda ids, places: model(
                input_ids=ids, position_ids=places, use_cache=True, **{cache_argument(model): runner.cache}
            ).logits[0]
        )
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("positions", "bound"), [(1, 256), (256, 256), (257, 512), (700, 900)])
def test_bounds_are_few(positions: int, bound: int) -> None:
    assert bound_of(positions, 900) == bound


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_on_a_gpu_answer_as_the_cpu_does(
    tiny_pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts, params = ["The quick brown fox", "naïve café " * 30, "Paris"], GenerationParams(max_new_tokens=32)
    answers = []
    for device in ("cpu", "cuda"):
        with SSDEngine(*(copy.deepcopy(model).to(device) for model in tiny_pair), tokenizer=tokenizer) as engine:
            answers.append([engine.generate(prompt, params).token_ids for prompt in prompts])
            answers.append([answer.token_ids for answer in engine.batch(prompts, params)])
    assert all(answer == answers[0] for answer in answers)
