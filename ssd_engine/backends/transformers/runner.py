"""ModelRunner: one model's forward passes over any number of sequences at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.attention import Segment, segments_of_pass, use_segment_attention
from ssd_engine.backends.transformers.kv_cache import KVCache, count_cache_layers
from ssd_engine.backends.transformers.prefix_store import Prefix, PrefixStore, block_ends

_BLOCK_SIZES = {"cpu": (32, 16)}
_BLOCK_SIZES_ELSEWHERE = (256, 32, 16)


class Row:
    """One sequence in one model: the tokens that stand, and how many of them the model has read."""

    def __init__(self, prompt_ids: Sequence[int], ends: list[int], stretch: range) -> None:
        self.token_ids = list(prompt_ids)
        self.length = 0
        self.cached_prompt_tokens = 0
        self.ends = ends
        """Where the blocks end in which the prompt is read."""
        self.stretch = stretch
        """The positions of the cache that are this row's own."""

    @property
    def next_block(self) -> list[int]:
        """The prompt's next block; empty once all but the last token was read."""
        end = next((end for end in self.ends if end > self.length), 0)
        return self.token_ids[self.length : end]

    def accept(self, token_ids: Sequence[int]) -> None:
        """Let tokens stand; whatever was read of others is rolled back, and the last is left for the next pass."""
        self.token_ids.extend(token_ids)
        self.length = len(self.token_ids) - 1


class ModelRunner:
    """Runs one causal language model."""

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        """Take a model over.

        Raises:
            ModelLoadError: it keeps a state that cannot be rolled back, or cannot take several sequences at once.
        """
        self.model = model.eval()
        self.vocab_size = vocab_size
        self._num_layers = count_cache_layers(model.config)
        use_segment_attention(model)
        self._block_sizes = _BLOCK_SIZES.get(self.device.type, _BLOCK_SIZES_ELSEWHERE)
        probe = KVCache(self._num_layers, positions=1)
        self._try(probe, 1)  # what this family cannot do shows here, before any request
        self.bytes_per_position = probe.nbytes
        self.cache = probe
        self.prefixes = PrefixStore(0)

    def allocate(self, positions: int, prefix_bytes: int) -> None:
        """Make room for `positions` of sequences, and for at most `prefix_bytes` of kept prefixes."""
        self.cache = KVCache(self._num_layers, positions)
        self.prefixes = PrefixStore(prefix_bytes)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def open(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Row | None:
        """Begin a row; None while the cache has no room for it."""
        stretch = self.cache.arena.take(len(prompt_ids) + max_new_tokens)
        return None if stretch is None else Row(prompt_ids, block_ends(len(prompt_ids), self._block_sizes), stretch)

    def close(self, row: Row) -> None:
        """Free a row's part of the cache."""
        self.cache.arena.give_back(row.stretch)

    def read_block(self, row: Row) -> None:
        """Read the next block of a row's prompt, from a kept prefix as far as one goes."""
        if row.length == 0:
            self._reuse_prefix(row)
        block = row.next_block
        if block:
            # The bare decoder: no logits are wanted here, and the output matrix is a good part of a small model.
            self._read(self.model.base_model, [row], torch.tensor(block), [len(block)])
            if not row.next_block:
                self._keep_prefix(row)

    def forward(self, rows: Sequence[Row], token_ids: Tensor, counts: Sequence[int]) -> Tensor:
        """Read new tokens of several rows, one row after the other.

        Args:
            rows: R rows.
            token_ids: [T] int64, the rows' tokens end to end.
            counts: R numbers of tokens.

        Returns:
            [T, V] logits.
        """
        logits: Tensor = self._read(self.model, rows, token_ids, counts).logits
        return logits[0, :, : self.vocab_size]

    def seconds(self, tokens: int, repeats: int = 3) -> float:
        """Time of a pass over `tokens` tokens, the best of some."""
        cache = KVCache(self._num_layers, tokens)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self._try(cache, tokens)
            times.append(time.perf_counter() - start)
        return min(times)

    def _try(self, cache: KVCache, tokens: int) -> None:
        """A pass that stands for nothing, over a cache of its own."""
        positions = list(range(tokens))
        segment = Segment(slice(0, tokens), slice(0, tokens))
        output = self._pass(self.model, cache, [segment], torch.tensor(positions), positions, positions)
        output.logits[0, -1, 0].item()  # waits for the device

    def _reuse_prefix(self, row: Row) -> None:
        prefix, shared = self.prefixes.find(row.token_ids, row.ends)
        if prefix is not None:
            self.cache.restore(prefix.snapshot, row.stretch[:shared])
            row.length = row.cached_prompt_tokens = shared

    def _keep_prefix(self, row: Row) -> None:
        snapshot = self.cache.snapshot(row.stretch[: row.length])
        self.prefixes.add(Prefix(tuple(row.token_ids[: row.length]), tuple(row.ends), snapshot))

    def _read(self, module: nn.Module, rows: Sequence[Row], token_ids: Tensor, counts: Sequence[int]) -> Any:
        """Output of `module` for new tokens; the rows have read them once this returns."""
        segments: list[Segment] = []
        positions: list[int] = []
        written: list[int] = []
        for row, count in zip(rows, counts, strict=True):
            cached = row.stretch[: row.length + count]
            segments.append(Segment(slice(len(positions), len(positions) + count), slice(cached.start, cached.stop)))
            positions += range(row.length, row.length + count)
            written += cached[row.length :]
        output = self._pass(module, self.cache, segments, token_ids, positions, written)
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        return output

    @torch.inference_mode()
    def _pass(
        self,
        module: nn.Module,
        cache: KVCache,
        segments: Sequence[Segment],
        token_ids: Tensor,
        positions: list[int],
        written: list[int],
    ) -> Any:
        """One forward pass; `positions` are places in the sequences, `written` places in the cache, [T] each."""
        cache.write_at(torch.tensor(written, device=self.device))
        with segments_of_pass(segments):
            return module(
                input_ids=token_ids.to(self.device)[None],
                position_ids=torch.tensor([positions], device=self.device),
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            )
