"""SegmentedPass: a forward pass of several sequences, each of which attends to its own stretch of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from ssd_engine.backends.transformers.attention import MaskFunction, Projections, attend
from ssd_engine.backends.transformers.kv_cache import KVCache


@dataclass(frozen=True)
class Segment:
    """One sequence's part of a pass."""

    tokens: slice
    """Its places among the pass's tokens."""
    cached: slice
    """Its positions in the cache, those written in this pass included."""

    @property
    def num_tokens(self) -> int:
        """New tokens of this sequence."""
        return int(self.tokens.stop - self.tokens.start)

    @property
    def length(self) -> int:
        """Positions that the sequence has read once the pass is over."""
        return int(self.cached.stop - self.cached.start)


class SegmentedPass:
    """Attends sequence by sequence, to as many positions as each one has."""

    def __init__(self, cache: KVCache, segments: Sequence[Segment], written: Tensor) -> None:
        """`written`: [T] int64 positions of the cache that the pass's tokens are kept at."""
        self._cache = cache
        self._segments = segments
        self._written = written
        self._masks: list[list[Tensor | None]] = []
        self.add_mask(causal_mask_function)

    def add_mask(self, function: MaskFunction) -> int:
        """Enter a mask of the pass; returns its number."""
        self._masks.append([_segment_mask(segment, function, self._written.device) for segment in self._segments])
        return len(self._masks) - 1

    def attend(self, layer: int, mask: int, new: Projections) -> Tensor:
        """Attention of one layer, segment by segment, its new keys and values written to the cache."""
        keys, values = self._cache.write(layer, self._written, new.key, new.value)
        parts = [
            attend(
                new.query[:, :, segment.tokens],
                keys[:, :, segment.cached],
                values[:, :, segment.cached],
                segment_mask,
                new.scaling,
                new.softcap,
            )
            for segment, segment_mask in zip(self._segments, self._masks[mask], strict=True)
        ]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)


def _segment_mask(segment: Segment, function: MaskFunction, device: torch.device) -> Tensor | None:
    """[1, 1, q, n] bool, or None where everything is seen."""
    if segment.num_tokens == 1 and function is causal_mask_function:
        return None
    positions = torch.arange(segment.length, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    mask = function(zero, zero, positions[-segment.num_tokens :, None], positions[None, :])
    return mask.expand(segment.num_tokens, segment.length)[None, None]
