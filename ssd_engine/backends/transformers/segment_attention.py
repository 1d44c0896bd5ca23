"""Attention of one layer over a pass's segments, in a form that TorchScript can compile.

Annotations are evaluated here, since TorchScript does not read those of a named tuple otherwise.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ssd_engine.backends.transformers.attention import attend


class SegmentPlaces(NamedTuple):
    """Where the segments of a pass are, and what they see."""

    written: Tensor
    """[T] int64 positions of the cache that the pass's tokens are kept at."""
    bounds: list[tuple[int, int, int, int, int]]
    """Of each segment its first token and the end of its tokens; its first position in the cache, the end of its
    positions, and their end in whole blocks."""
    masks: list[Tensor | None]
    """Of each segment; bool, or of the scores' type and added to them."""
    by_token: bool
    """Whether each token attends by itself."""


def attend_segments(
    query: Tensor, keys: Tensor, values: Tensor, places: SegmentPlaces, scaling: float | None, softcap: float | None
) -> Tensor:
    """Attention of one layer, segment by segment.

    Args:
        query: [1, H, T, d].
        keys, values: [1, K, positions, d] and [1, K, positions, e] of the whole cache.
        places: where the segments are.
        scaling, softcap: as in `attend`.

    Returns:
        [1, T, H, e].
    """
    parts: list[Tensor] = []
    for index, (first, end, start, stop, block_stop) in enumerate(places.bounds):
        num_tokens, mask = end - first, places.masks[index]
        own = query.narrow(2, first, num_tokens)
        if places.by_token:
            unused = block_stop - stop
            if unused > 0:  # what is masked is still read, and has to be numbers
                keys.narrow(2, stop, unused).zero_()
                values.narrow(2, stop, unused).zero_()
            rows = own.permute(2, 1, 0, 3)  # [T, H, 1, d]: tokens become rows
            seen_keys = keys.narrow(2, start, block_stop - start).expand(num_tokens, -1, -1, -1)
            seen_values = values.narrow(2, start, block_stop - start).expand(num_tokens, -1, -1, -1)
            parts.append(attend(rows, seen_keys, seen_values, mask, scaling, softcap).transpose(0, 1))
        else:
            seen_keys, seen_values = keys.narrow(2, start, stop - start), values.narrow(2, start, stop - start)
            parts.append(attend(own, seen_keys, seen_values, mask, scaling, softcap))
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)
