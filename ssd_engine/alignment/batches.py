"""Batches of examples: which go together, and how they lie in tensors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from ssd_engine.alignment.examples import Example

IGNORED = -100
"""Label of a token that is not to be learned; PyTorch's."""


def in_batches(examples: Sequence[Example], batch_size: int, epochs: int, seed: int) -> list[Example]:
    """The examples of all epochs, in an order of batches whose examples are of like length, for little padding."""
    ordered: list[Example] = []
    for epoch in range(epochs):
        rng = random.Random(f"{seed} epoch {epoch}")
        # Full batches only: by length, a rest would always hold the longest.
        chosen = rng.sample(examples, len(examples) - len(examples) % batch_size or len(examples))
        chosen.sort(key=lambda example: example.num_tokens)
        batches = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
        rng.shuffle(batches)
        ordered += [example for batch in batches for example in batch]
    return ordered


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch, padded on the left.

    Each row holds the shared context and behind it each ending with the token before it, which sees the context up to
    its place and itself alone.

    Returns:
        `input_ids` and `position_ids` [B, T]; `attention_mask` [B, 1, T, T], to be added to attention scores;
        `labels` [B, L], each what follows the input of the same place among the last L; and L as `logits_to_keep`.
    """
    longest = max(example.num_tokens for example in examples)
    kept = max(example.num_learned for example in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    position_ids = torch.zeros_like(input_ids)
    labels = torch.full((len(examples), kept), IGNORED)
    # Padding sees itself: a row of a softmax needs something.
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(examples), 1, 1)
    for row, example in enumerate(examples):
        start = longest - example.num_tokens
        first = start + len(example.shared)
        input_ids[row, start:first] = torch.tensor(example.shared)
        position_ids[row, start:first] = torch.arange(len(example.shared))
        sees[row, start:first, start:first] = _causal(first - start)
        for ending in example.endings:
            end, before = first + len(ending.token_ids), ending.place - 1
            learned = torch.tensor(ending.token_ids)
            input_ids[row, first] = example.context[before]
            input_ids[row, first + 1 : end] = learned[:-1]
            position_ids[row, first:end] = torch.arange(before, before + len(learned))
            sees[row, first:end, start : start + before] = True
            sees[row, first:end, first:end] = _causal(len(learned))
            labels[row, first - longest + kept : end - longest + kept] = learned
            first = end
    # bfloat16's least: float32's is infinite in it, and then the gradients are not numbers.
    mask = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.bfloat16).min)
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": mask.unsqueeze(1),
        "labels": labels,
        "logits_to_keep": kept,
    }


def _causal(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()
