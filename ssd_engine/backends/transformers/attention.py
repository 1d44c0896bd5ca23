"""Attention over several sequences laid end to end in one pass, through transformers' attention interface.

A pass holds the new tokens of all sequences in one row, [1, T]. Everything but attention treats tokens one by one, so
it needs to know nothing of sequences; here each sequence's tokens look at the cached positions of their own sequence.
So sequences of any lengths go together without padding, and what one of them computes does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from ssd_engine.errors import ModelLoadError

NAME = "ssd_segments"
_UNSUPPORTED = ("s_aux", "position_bias")
"""Extras that some families hand to attention, and that change what it computes."""


@dataclass(frozen=True)
class Segment:
    """One sequence's part of a pass."""

    tokens: slice
    """Its places among the pass's tokens."""
    cached: slice
    """Its positions in the cache, those written in this pass included."""

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.stop - self.tokens.start)

    @property
    def length(self) -> int:
        """Positions that the sequence has read once the pass is over."""
        return int(self.cached.stop - self.cached.start)


_under_way: ContextVar[Sequence[Segment] | None] = ContextVar("segments of the pass under way", default=None)


@contextmanager
def segments_of_pass(segments: Sequence[Segment]) -> Iterator[None]:
    """What the forward pass inside is made of. Other threads, and passes outside, are not touched."""
    token = _under_way.set(segments)
    try:
        yield
    finally:
        _under_way.reset(token)


def use_segment_attention(model: PreTrainedModel) -> None:
    """Make `model` take passes of several sequences; passes of any other caller go on as before.

    Raises:
        ModelLoadError: the model's family computes attention by itself.
    """
    if not model._can_set_attn_implementation():
        raise ModelLoadError(
            f"model type {model.config.model_type!r} computes attention in a way that cannot serve several sequences "
            "at once; use a family that supports transformers' attention interface, such as Llama, Qwen, Gemma, "
            "Mistral or GPT-NeoX"
        )
    model.set_attn_implementation(NAME)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[1, T, H, e] attention of `query` [1, H, T, d] to `key` [1, K, n, d] and `value` [1, K, n, e]."""
    extras = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if extras:
        raise ModelLoadError(f"{type(module).__name__} needs {extras[0]} in attention, which this engine does not have")
    segments = _under_way.get()
    if segments is None:
        return _attend(query, key, value, attention_mask, scaling, softcap), None
    parts = [
        _attend(
            query[:, :, segment.tokens],
            key[:, :, segment.cached],
            value[:, :, segment.cached],
            mask,
            scaling,
            softcap,
        )
        for segment, mask in zip(segments, attention_mask, strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """[B, q, H, e]. `query` is [B, H, q, d], `key` and `value` [B, K, n, ...], `mask` [B, 1, q, n] bool or None."""
    rows, heads, length, size = query.shape
    groups = heads // key.shape[1]
    # Query heads that share keys become more queries of one head: no key is copied, and every kernel can do it.
    folded = query.reshape(rows, key.shape[1], groups * length, size)
    if mask is not None:
        mask = mask.repeat(1, 1, groups, 1)
    if softcap is None:
        out = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        scores = folded @ key.transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)
        scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        out = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return out.reshape(rows, heads, length, -1).transpose(1, 2)


def _masks(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Any:
    """What each segment's tokens may look at: [1, 1, q, n] bool, or None for everything."""
    segments = _under_way.get()
    if segments is None:
        kwargs.update(allow_is_causal_skip=False, use_vmap=use_vmap, device=device)
        return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **kwargs)
    if use_vmap:
        raise ModelLoadError("this model's attention mask depends on more than positions, which this engine cannot do")
    return [_segment_mask(segment, mask_function, device) for segment in segments]


def _segment_mask(segment: Segment, mask_function: Callable[..., Tensor], device: torch.device | str) -> Tensor | None:
    if segment.num_tokens == 1 and mask_function is causal_mask_function:
        return None
    positions = torch.arange(segment.length, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    mask = mask_function(zero, zero, positions[-segment.num_tokens :, None], positions[None, :])
    return mask.expand(segment.num_tokens, segment.length)[None, None]


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _masks)
