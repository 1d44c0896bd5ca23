"""Small models that say what they were taught, word for word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from conftest import make_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def memorised(
    tokenizer: PreTrainedTokenizerFast, answers: Sequence[tuple[str, str]], *, hidden_size: int = 64
) -> PreTrainedModel:
    """A model that goes on from each first text with the second; control tokens are read as such."""
    model = make_model(0, len(tokenizer), hidden_size=hidden_size).train()
    texts = [f"{asked}{answer}" for asked, answer in answers]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    for row, (asked, _) in zip(labels, answers, strict=True):
        row[: len(tokenizer(asked, add_special_tokens=False).input_ids)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
        if loss < 0.02:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
