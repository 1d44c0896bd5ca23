"""Packed layers on a CPU: to the last bit, a token comes out as if it were read by itself, whatever a pass holds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import CAUSAL, VOCAB, WINDOWED, build
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.runner import ModelRunner
from ssd_engine.models.linear import HalfLinear, Int8Linear, compute_in_float32, replace_linears

FAMILIES = [family for family in (*CAUSAL, *WINDOWED) if family.id != "gpt2"]  # it has no linear layers
PROMPT = [(7 * i) % VOCAB for i in range(40)]
ANSWER = [(11 * i + 3) % VOCAB for i in range(48)]
"""Its places reach over edges of blocks of positions."""


def packed(family: type[PreTrainedModel], config: Any, layer: Any) -> PreTrainedModel:
    if layer is HalfLinear and not HalfLinear.is_available():
        pytest.skip("not in this build of torch")
    model = build(family, copy.deepcopy(config)).bfloat16()
    replace_linears(model, layer)
    compute_in_float32(model)
    return model


@torch.inference_mode()
def said(runner: ModelRunner, sizes: Sequence[int], company: Sequence[int] = ()) -> torch.Tensor:
    """[T, V] logits after each token of the answer, which is read in passes of these sizes."""
    runner.allocate(512, 0)
    row, other = runner.open(PROMPT, len(ANSWER)), runner.open([5, 6, 7], 64)
    assert row is not None
    assert other is not None
    while row.next_block:
        runner.read_block(row)
    runner.forward([row], torch.tensor(PROMPT[-1:]), [1])
    logits, start = [], 0
    for size in sizes:
        token_ids = torch.tensor([*company, *ANSWER[start : start + size]])
        rows, counts = ([other, row], [len(company), size]) if company else ([row], [size])
        logits.append(runner.forward(rows, token_ids, counts)[-size:].clone())
        start += size
    assert start == len(ANSWER)
    return torch.cat(logits)


@pytest.mark.parametrize("layer", [Int8Linear, HalfLinear])
@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_a_token_comes_out_alike_whatever_else_a_pass_holds(
    family: type[PreTrainedModel], config: Any, layer: Any
) -> None:
    runner = ModelRunner(packed(family, config, layer), VOCAB)
    alone = said(runner, [1] * len(ANSWER))
    for sizes in ([2] * 24, [3] * 16, [16] * 3, [15, 1, 13, 3, 16], [48]):
        assert torch.equal(said(runner, sizes), alone), sizes
    assert torch.equal(said(runner, [4] * 12, company=[9, 8, 7]), alone)


def test_what_another_sequence_left_behind_is_not_seen() -> None:
    """Not even numbers that are none: a hidden position is still multiplied."""
    family, config = CAUSAL[0].values
    runner = ModelRunner(packed(family, config, Int8Linear), VOCAB)
    clean = said(runner, [3] * 16)
    allocate = runner.allocate

    def soiled(positions: int, prefix_bytes: int) -> None:
        allocate(positions, prefix_bytes)
        runner._try(1)
        for layer in runner.cache.layers:
            for states in (layer.keys, layer.values):
                assert states is not None
                states.fill_(float("nan"))

    runner.allocate = soiled  # type: ignore[method-assign]
    assert torch.equal(said(runner, [3] * 16), clean)


@torch.inference_mode()
def said_after(runner: ModelRunner, prompts: Sequence[list[int]], *, together: bool) -> list[torch.Tensor]:
    """[V] logits after each of the prompts, whose blocks are read in passes of four or each in a pass of its own."""
    runner.allocate(1024, 0)
    rows = [row for prompt in prompts if (row := runner.open(prompt, 4)) is not None]
    unread = [row for row in rows for _ in range(row.num_unread_blocks)]
    size = 4 if together else 1
    for first in range(0, len(unread), size):
        runner.read_blocks(unread[first : first + size])
    assert not any(row.num_unread_blocks for row in rows)
    return [runner.forward([row], torch.tensor(row.unread), [1])[0].clone() for row in rows]


@pytest.mark.parametrize("layer", [Int8Linear, HalfLinear])
def test_a_prompt_comes_out_alike_whatever_is_read_in_the_same_passes(layer: Any) -> None:
    family, config = next(family.values for family in FAMILIES if family.id == "qwen2")
    runner = ModelRunner(packed(family, config, layer), VOCAB)
    assert runner.reads_together
    prompts = [[(number * i + i) % VOCAB for i in range(length)] for number, length in enumerate([150, 33, 7, 70], 3)]
    alone = said_after(runner, prompts, together=False)
    for logits, expected in zip(said_after(runner, prompts, together=True), alone, strict=True):
        assert torch.equal(logits, expected)


def test_kernels_whose_sums_depend_on_the_number_of_rows_read_prompt_after_prompt() -> None:
    family, config = next(family.values for family in FAMILIES if family.id == "qwen2")
    assert not ModelRunner(build(family, copy.deepcopy(config)), VOCAB).reads_together
