"""SegmentedPass: a forward pass of several sequences, each of which attends to its own stretch of the cache.

Kernels sum in an order that depends on the shapes of what they get. Where the tokens of a pass are to come out as if
each were read by itself, each attends as a row of its own, over whole blocks of positions of which a mask hides the
rest: so every token has the same shapes, and the same sums, whatever else the pass holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from ssd_engine.backends.transformers.attention import MaskFunction, Projections
from ssd_engine.backends.transformers.kv_cache import KVCache
from ssd_engine.backends.transformers.segment_attention import SegmentPlaces, attend_segments

_BLOCK = 32
"""Positions; those that a token by itself attends to are a multiple of it."""


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

    @property
    def bounds(self) -> tuple[int, int, int, int, int]:
        """As in `SegmentPlaces`; a sequence's stretch of the cache has room for whole blocks."""
        start = self.cached.start
        return self.tokens.start, self.tokens.stop, start, self.cached.stop, start + in_blocks(self.length)

    @property
    def by_blocks(self) -> Iterator[Segment]:
        """The same in parts, in each of which all tokens have as many positions in whole blocks."""
        start, first = self.cached.start, self.tokens.start
        before = self.length - self.num_tokens
        while before < self.length:
            end = min(in_blocks(before + 1), self.length)
            yield Segment(slice(first, first + end - before), slice(start, start + end))
            first, before = first + end - before, end


class SegmentedPass:
    """Attends sequence by sequence, to as many positions as each one has."""

    def __init__(self, cache: KVCache, segments: Sequence[Segment], written: Tensor, *, by_token: bool) -> None:
        """Take a pass's segments.

        Args:
            cache: where keys and values are kept.
            segments: the sequences' parts, one after the other.
            written: [T] int64 positions of the cache that the pass's tokens are kept at.
            by_token: whether each token attends by itself.
        """
        if by_token:
            segments = [part for segment in segments for part in segment.by_blocks]
        self._cache = cache
        self._segments = segments
        self._written = written
        self._by_token = by_token
        self._bounds = [segment.bounds for segment in segments]
        self._masks: list[list[Tensor | None]] = []
        self.add_mask(causal_mask_function)

    def add_mask(self, function: MaskFunction) -> int:
        """Enter a mask of the pass; returns its number."""
        mask = _mask_by_token if self._by_token else _mask_together
        self._masks.append([mask(segment, function, self._written.device) for segment in self._segments])
        return len(self._masks) - 1

    def attend(self, layer: int, mask: int, new: Projections) -> Tensor:
        """Attention of one layer, segment by segment, its new keys and values written to the cache."""
        keys, values = self._cache.write(layer, self._written, new.key, new.value)
        return attend_segments(new.query, keys, values, self.places(mask), new.scaling, new.softcap)

    def places(self, mask: int) -> SegmentPlaces:
        """What `attend_segments` takes, with the mask of this number."""
        return SegmentPlaces(self._written, self._bounds, self._masks[mask], self._by_token)

    def memory(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of all layers, [1, K, positions, d] each, for a model that writes them by itself.

        `like`: [1, K, T, d] states of any of its layers.
        """
        return self._cache.memory(like)


def in_blocks(length: int) -> int:
    """`length` positions, filled up to whole blocks."""
    return -(-length // _BLOCK) * _BLOCK


def _mask_together(segment: Segment, function: MaskFunction, device: torch.device) -> Tensor | None:
    """[1, 1, q, n] bool, or None where everything is seen."""
    if segment.num_tokens == 1 and function is causal_mask_function:
        return None
    return _mask(segment, segment.length, function, device)[None, None]


def _mask_by_token(segment: Segment, function: MaskFunction, device: torch.device) -> Tensor:
    """[T, 1, 1, n] bool."""
    return _mask(segment, in_blocks(segment.length), function, device)[:, None, None]


def _mask(segment: Segment, num_seen: int, function: MaskFunction, device: torch.device) -> Tensor:
    """[T, num_seen] bool: which of a sequence's first positions its new tokens see."""
    positions = torch.arange(num_seen, device=device)
    queries = positions[segment.length - segment.num_tokens : segment.length]
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return function(zero, zero, queries[:, None], positions[None, :]).expand(segment.num_tokens, num_seen)
