"""Attention over several sequences laid end to end in one pass, through transformers' attention interface.

A pass holds the new tokens of all sequences in one row, [1, T]. Everything but attention treats tokens one by one, so
it needs to know nothing of sequences. Attention hands the pass's queries, keys and values to the pass that is under
way, which keeps the keys and values and lets each sequence's tokens look at the positions of their own sequence. So
sequences of any lengths go together without padding, and what one of them computes does not depend on the others.

That hand-over is one operator of torch's: a compiled layer holds a call of it and nothing of what differs from pass
to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from ssd_engine.errors import ModelLoadError

NAME = "ssd_segments"
MaskFunction = Callable[..., Tensor]
"""transformers': (batch, head, query position, key position), int64 tensors, to whether the one may see the other."""
_UNSUPPORTED = ("s_aux", "position_bias")
"""Extras that some families hand to attention, and that change what it computes."""


CAUSAL = 0
"""The number of the mask that every pass has."""


@dataclass(frozen=True)
class Projections:
    """What a layer hands to attention."""

    query: Tensor
    """[1, H, T, d]"""
    key: Tensor
    """[1, K, T, d]"""
    value: Tensor
    """[1, K, T, e]"""
    scaling: float | None
    softcap: float | None


class ForwardPass(Protocol):
    """A pass under way."""

    def add_mask(self, function: MaskFunction) -> int:
        """Take a mask other than the causal one, for some of the model's layers; returns its number."""

    def attend(self, layer: int, mask: int, new: Projections) -> Tensor:
        """Keep a layer's keys and values of the pass's tokens; returns what their queries see, [1, T, H, e]."""


_under_way: ContextVar[ForwardPass] = ContextVar("the pass under way")


@contextmanager
def under_way(forward_pass: ForwardPass) -> Iterator[None]:
    """The model call inside is this pass. Other threads, and calls outside, are not touched."""
    token = _under_way.set(forward_pass)
    try:
        yield
    finally:
        _under_way.reset(token)


def pass_under_way() -> ForwardPass:
    """The pass that the model call around this is."""
    return _under_way.get()


def use_segment_attention(model: PreTrainedModel, num_layers: int) -> None:
    """Make `model` take passes of several sequences; calls by anyone else go on as before.

    Args:
        num_layers: layers of the key-value cache.

    Raises:
        ModelLoadError: the model's family computes attention by itself, or shares keys between layers.
    """
    if not model._can_set_attn_implementation():
        raise ModelLoadError(
            f"model type {model.config.model_type!r} computes attention in a way that cannot serve several sequences "
            "at once; use a family that supports transformers' attention interface, such as Llama, Qwen, Gemma, "
            "Mistral or GPT-NeoX"
        )
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int):
            if layer >= num_layers:
                raise ModelLoadError(
                    f"model type {model.config.model_type!r} has a layer {layer} without keys of its own; "
                    "use a model whose layers all keep their keys and values"
                )
            # A tensor: a number would be a constant of compiled code, and every layer would be compiled by itself.
            module.ssd_layer = torch.tensor(layer)
    model.set_attn_implementation(NAME)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """Scaled dot-product attention, with Gemma 2's soft cap where one is given; TorchScript can compile it.

    Args:
        query: [B, H, q, d].
        key, value: [B, K, n, d] and [B, K, n, e]; H is a multiple of K.
        mask: [B, 1, q, n] bool; None: everything is seen.

    Returns:
        [B, q, H, e].
    """
    rows, heads, length, size = query.shape
    groups = heads // key.shape[1]
    # Query heads that share keys become more queries of one head: no key is copied, and every kernel can do it.
    folded = query.reshape(rows, key.shape[1], groups * length, size)
    if mask is not None:
        mask = mask.expand(-1, -1, groups, -1) if length == 1 else mask.repeat(1, 1, groups, 1)
    if softcap is None:
        out = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        scores = folded @ key.transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)
        scores = torch.tanh(scores / softcap) * softcap
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return out.reshape(rows, heads, length, -1).transpose(1, 2)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every attention layer; inside a pass `attention_mask` is the number of a mask."""
    extras = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if extras:
        raise ModelLoadError(f"{type(module).__name__} needs {extras[0]} in attention, which this engine does not have")
    if attention_mask is None or attention_mask.ndim > 0:
        return attend(query, key, value, attention_mask, scaling, softcap), None
    seen = torch.ops.ssd_engine.attend.default(query, key, value, module.ssd_layer, attention_mask, scaling, softcap)
    return seen, None


def _masks(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """What transformers calls for every kind of mask; inside a pass, the number of the mask."""
    is_causal = mask_function is causal_mask_function
    if torch.compiler.is_compiling():
        if not is_causal:
            raise ModelLoadError("layers with a sliding window, or another mask of their own, cannot be compiled")
        return torch.tensor(CAUSAL)
    forward_pass = _under_way.get(None)
    if forward_pass is None:
        kwargs.update(allow_is_causal_skip=False, use_vmap=use_vmap, device=device)
        mask: Tensor | None = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **kwargs
        )
        return mask
    if use_vmap:
        raise ModelLoadError("this model's attention mask depends on more than positions, which this engine cannot do")
    return torch.tensor(CAUSAL if is_causal else forward_pass.add_mask(mask_function))


def _attend_in_pass(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    return pass_under_way().attend(int(layer), int(mask), Projections(query, key, value, scaling, softcap))


def _shape_of_attend(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


_LIBRARY = torch.library.Library("ssd_engine", "FRAGMENT")
_LIBRARY.define(
    "attend(Tensor query, Tensor key, Tensor value, Tensor layer, Tensor mask, float? scaling, float? softcap)"
    " -> Tensor"
)
_LIBRARY.impl("attend", _attend_in_pass, "CompositeExplicitAutograd")


torch.library.register_fake("ssd_engine::attend", _shape_of_attend, lib=_LIBRARY)
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _masks)
