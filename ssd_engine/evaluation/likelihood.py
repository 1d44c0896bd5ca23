"""How likely a model finds the same words after many prompts that begin alike."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ssd_engine.models.forward import cache_argument


class Likelihood:
    """Log-probabilities under one model. What all prompts share is read once, and kept for the next call."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache_argument = cache_argument(model)
        self._stem: list[int] = []
        self._cache = DynamicCache()

    @torch.inference_mode()
    def of(self, words: Sequence[int], prompts: Sequence[Sequence[int]], stem: Sequence[int]) -> list[float]:
        """The mean log-probability of the `words`, in order, after each prompt.

        Args:
            words: token ids, at least one.
            prompts: token ids; they are read in one pass.
            stem: how the prompts of this and later calls begin, as far as they do; a prompt itself will do.
        """
        self._keep(_shared([stem, *(prompt[:-1] for prompt in prompts)]))
        known = len(self._stem)
        rests = [[*prompt[known:], *words[:-1]] for prompt in prompts]
        longest = max(map(len, rests))
        # Padding stands behind, where nothing that counts sees it.
        input_ids = torch.tensor([rest + [0] * (longest - len(rest)) for rest in rests], device=self._model.device)
        kept = longest - min(map(len, rests)) + len(words)
        cache = copy.deepcopy(self._cache)
        if known:
            cache.batch_repeat_interleave(len(rests))
        logits = self._read(input_ids, cache, kept).float()
        expected = torch.tensor(words, device=logits.device).unsqueeze(-1)
        found = []
        for row, rest in zip(logits, rests, strict=True):
            end = kept - (longest - len(rest))
            log_probs = row[end - len(words) : end].log_softmax(-1)
            found.append(float(log_probs.gather(-1, expected).mean()))
        return found

    def _keep(self, shared: list[int]) -> None:
        """Have the keys and values of a beginning that all prompts share."""
        if self._stem and shared[: len(self._stem)] == self._stem:
            return
        self._stem, self._cache = shared, DynamicCache()
        if shared:
            self._read(torch.tensor([shared], device=self._model.device), self._cache, 1)

    def _read(self, input_ids: Tensor, cache: DynamicCache, kept: int) -> Tensor:
        """[rows, kept, V] logits at the last places of `input_ids` [rows, tokens], which `cache` takes in."""
        logits: Tensor = self._model(input_ids, logits_to_keep=kept, **{self._cache_argument: cache}).logits
        return logits


def _shared(sequences: Sequence[Sequence[int]]) -> list[int]:
    """The longest beginning that all have in common."""
    shared = []
    for first, *others in zip(*sequences, strict=False):
        if any(other != first for other in others):
            break
        shared.append(first)
    return shared
