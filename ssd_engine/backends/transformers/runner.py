"""ModelRunner: one model's forward passes over rows, each row with its own cache and length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.kv_cache import KVCache, count_cache_layers
from ssd_engine.backends.transformers.prefix_store import Prefix, PrefixStore, block_ends

_BLOCK_SIZES = {"cpu": (32, 16)}
_BLOCK_SIZES_ELSEWHERE = (256, 32, 16)


class Row:
    """One sequence in one model: the tokens that stand so far, and the cache of those that were read."""

    def __init__(self, prompt_ids: Sequence[int], ends: list[int], cache: KVCache) -> None:
        self.token_ids = list(prompt_ids)
        self.cached_prompt_tokens = cache.length
        self.cache = cache
        self._ends = ends

    @property
    def unread(self) -> list[int]:
        return self.token_ids[self.cache.length :]

    @property
    def next_block(self) -> list[int]:
        """The prompt's next block; empty when only the part that the first round reads is left."""
        end = next((end for end in self._ends if end > self.cache.length), 0)
        return self.token_ids[self.cache.length : end]

    @property
    def prefix_ends(self) -> list[int]:
        return self._ends

    def replace_from(self, position: int, token_ids: Sequence[int]) -> None:
        """Let `token_ids` stand from `position` on; what was read of others is rolled back."""
        kept = position
        for old, new in zip(self.token_ids[position:], token_ids, strict=False):
            if old != new:
                break
            kept += 1
        self.cache.roll_back(kept)
        self.token_ids[position:] = token_ids


class ModelRunner:
    """Runs one causal language model."""

    def __init__(self, model: PreTrainedModel, vocab_size: int, prefix_cache_bytes: int) -> None:
        self.model = model.eval()
        self.vocab_size = vocab_size
        self.prefixes = PrefixStore(prefix_cache_bytes)
        self._num_layers = count_cache_layers(model.config)
        self._block_sizes = _BLOCK_SIZES.get(self.device.type, _BLOCK_SIZES_ELSEWHERE)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def open(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Row:
        """Begin a row, from the longest prefix that is kept."""
        ends = block_ends(len(prompt_ids), self._block_sizes)
        cache = KVCache(self._num_layers, capacity=len(prompt_ids) + max_new_tokens)
        prefix, shared = self.prefixes.find(prompt_ids, ends)
        if prefix is not None:
            cache.restore(prefix.snapshot, shared)
        return Row(prompt_ids, ends, cache)

    def read_block(self, row: Row) -> None:
        """Read the next block of a row's prompt; after the last one the prefix is kept."""
        # The bare decoder: no logits are wanted here, and the output matrix is a good part of a small model.
        self.model.base_model(
            input_ids=self._input(row.next_block), past_key_values=row.cache, use_cache=True, return_dict=True
        )
        if not row.next_block:
            length = row.cache.length
            self.prefixes.add(Prefix(tuple(row.token_ids[:length]), tuple(row.prefix_ends), row.cache.snapshot(length)))

    def forward(self, rows: Sequence[Row], keep: Sequence[int]) -> list[Tensor]:
        """Read each row's unread tokens; returns the logits [keep[i], V] of row i's last `keep[i]` positions."""
        return [self._forward_row(row, positions) for row, positions in zip(rows, keep, strict=True)]

    def _forward_row(self, row: Row, keep: int) -> Tensor:
        output = self.model(
            input_ids=self._input(row.unread), past_key_values=row.cache, use_cache=True, logits_to_keep=keep
        )
        logits: Tensor = output.logits[0, -keep:, : self.vocab_size]
        return logits

    def _input(self, token_ids: list[int]) -> Tensor:
        return torch.tensor([token_ids], device=self.device)
