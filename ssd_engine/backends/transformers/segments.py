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

from ssd_engine.backends.transformers.attention import MaskFunction, Projections, attend
from ssd_engine.backends.transformers.kv_cache import KVCache

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
    def in_blocks(self) -> slice:
        """Its positions in the cache in whole blocks; a sequence's stretch of the cache has room for them."""
        return slice(self.cached.start, self.cached.start + in_blocks(self.length))

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
        self._cache = cache
        self._segments = [part for segment in segments for part in segment.by_blocks] if by_token else segments
        self._written = written
        self._attend = self._attend_by_token if by_token else self._attend_together
        self._mask = _mask_by_token if by_token else _mask_together
        self._masks: list[list[Tensor | None]] = []
        self.add_mask(causal_mask_function)

    def add_mask(self, function: MaskFunction) -> int:
        """Enter a mask of the pass; returns its number."""
        self._masks.append([self._mask(segment, function, self._written.device) for segment in self._segments])
        return len(self._masks) - 1

    def attend(self, layer: int, mask: int, new: Projections) -> Tensor:
        """Attention of one layer, segment by segment, its new keys and values written to the cache."""
        keys, values = self._cache.write(layer, self._written, new.key, new.value)
        parts = [
            self._attend(segment, segment_mask, new, keys, values)
            for segment, segment_mask in zip(self._segments, self._masks[mask], strict=True)
        ]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)

    @staticmethod
    def _attend_together(
        segment: Segment, mask: Tensor | None, new: Projections, keys: Tensor, values: Tensor
    ) -> Tensor:
        query, seen = new.query[:, :, segment.tokens], segment.cached
        return attend(query, keys[:, :, seen], values[:, :, seen], mask, new.scaling, new.softcap)

    @staticmethod
    def _attend_by_token(
        segment: Segment, mask: Tensor | None, new: Projections, keys: Tensor, values: Tensor
    ) -> Tensor:
        seen, unused = segment.in_blocks, slice(segment.cached.stop, segment.in_blocks.stop)
        for states in (keys, values):
            states[:, :, unused].zero_()  # what is masked is still read, and has to be numbers
        # [T, H, 1, d]: tokens become rows.
        rows = new.query[0, :, segment.tokens].transpose(0, 1)[:, :, None]
        keys, values = (states[:, :, seen].expand(segment.num_tokens, -1, -1, -1) for states in (keys, values))
        return attend(rows, keys, values, mask, new.scaling, new.softcap).transpose(0, 1)


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
