"""LeanPasses: passes of models of the Llama kind on a CPU, with as few operators and as little Python as they need.

Transformers' own layers spend, on passes of a few tokens, as much time between the matrix products as in them. Here the
layers' parts are the model's own, and compute the same; only what lies between them is written out. TorchScript runs
all layers as one call, without Python; where it cannot, the same code runs as Python.
"""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.attention import CAUSAL, pass_under_way
from ssd_engine.backends.transformers.layer_states import LayerStates
from ssd_engine.backends.transformers.segment_attention import SegmentPlaces, attend_segments
from ssd_engine.backends.transformers.segments import SegmentedPass
from ssd_engine.models.merged import MergedPart

_logger = logging.getLogger(__name__)

_CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class LeanPasses:
    """A model as a function that computes what the model does."""

    def __init__(self, model: PreTrainedModel, states: LayerStates | None) -> None:
        """`states`: where the output of one of the layers is kept."""
        self._model = model
        self._states = states
        self._layers = _in_one_call(_Layers(model, -1 if states is None else states.index))
        attention = model.model.layers[0].self_attn
        self._heads_shape = 1, attention.config.num_key_value_heads, 0, attention.head_dim

    @staticmethod
    def suits(model: PreTrainedModel) -> bool:
        """Whether this is the way to run a model."""
        config = model.config
        has_window = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        return (
            type(model).__name__ in _CLASSES
            and config.hidden_act == "silu"
            and not has_window
            and (getattr(config, "layer_types", None) is not None or not getattr(config, "sliding_window", None))
            and {parameter.device.type for parameter in model.parameters()} == {"cpu"}
        )

    @property
    def is_one_call(self) -> bool:
        """Whether a pass's layers run without Python."""
        return isinstance(self._layers, torch.jit.ScriptModule)

    def __call__(self, *, input_ids: Tensor, position_ids: Tensor, wants_logits: bool = True, **_: Any) -> Any:
        """A pass under way over tokens [1, T]; the `logits` [1, T, V] of what is returned are None if not wanted."""
        decoder = self._model.model
        states = decoder.embed_tokens(input_ids)
        cos, sin = decoder.rotary_emb(states, position_ids)
        half = sin.shape[-1] // 2
        # Half of a head's numbers change places and the others' sign: the sign is put into the sine once a pass.
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        segments = cast(SegmentedPass, pass_under_way())  # on a CPU, every pass is one
        memory = segments.memory(states.new_empty(self._heads_shape))
        places = segments.places(CAUSAL)
        places = places._replace(masks=[None if mask is None else _added(mask, states) for mask in places.masks])
        states, kept = self._layers(states, (cos[:, :, None], sin[:, :, None]), memory, places)
        if self._states is not None:
            self._states.latest = kept
        return SimpleNamespace(logits=self._model.lm_head(states) if wants_logits else None)


class _Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self._attention_norm = _weight_of(layer.input_layernorm)
        self._mlp_norm = _weight_of(layer.post_attention_layernorm)
        self._epsilon: float = layer.input_layernorm.variance_epsilon
        self._qkv = _together(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = attention.o_proj
        self._gate_up = _together(mlp.gate_proj, mlp.up_proj)
        self._down = mlp.down_proj
        has_norms = getattr(attention, "q_norm", None) is not None
        self._query_norm = _weight_of(attention.q_norm) if has_norms else None
        self._key_norm = _weight_of(attention.k_norm) if has_norms else None
        self._head_size: int = attention.head_dim
        self._num_key_heads: int = attention.config.num_key_value_heads
        self._scaling: float = attention.scaling

    def forward(
        self, states: Tensor, rotation: tuple[Tensor, Tensor], memory: tuple[Tensor, Tensor], places: SegmentPlaces
    ) -> Tensor:
        """[1, T, H] of states [1, T, H]."""
        query, key, value = self._projections(self._qkv(_normed(states, self._attention_norm, self._epsilon)), rotation)
        keys, values = memory
        keys.index_copy_(2, places.written, key)
        values.index_copy_(2, places.written, value)
        seen = attend_segments(query, keys, values, places, self._scaling, None)
        states = self._out(seen.flatten(2)).add_(states)
        gate, up = self._gate_up(_normed(states, self._mlp_norm, self._epsilon)).chunk(2, dim=-1)
        result: Tensor = self._down(nn.functional.silu(gate).mul_(up)).add_(states)
        return result

    def _projections(self, qkv: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [1, H, T, d], keys and values [1, K, T, d]."""
        cos, sin = rotation
        num_keys = self._num_key_heads
        heads = qkv.unflatten(-1, (-1, self._head_size))
        num_queries = heads.shape[2] - 2 * num_keys
        turned, value = heads.split([num_queries + num_keys, num_keys], dim=2)
        query_norm, key_norm = self._query_norm, self._key_norm
        if query_norm is not None and key_norm is not None:
            query, key = turned.split([num_queries, num_keys], dim=2)
            query, key = _normed(query, query_norm, self._epsilon), _normed(key, key_norm, self._epsilon)
            turned = torch.cat([query, key], dim=2)
        turned = (turned * cos).add_(turned.roll(self._head_size // 2, -1).mul_(sin))
        query, key = turned.split([num_queries, num_keys], dim=2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


class _Layers(nn.Module):
    """All of a model's layers and the norm after them."""

    def __init__(self, model: PreTrainedModel, kept: int) -> None:
        super().__init__()
        self._layers = nn.ModuleList([_Layer(layer) for layer in model.model.layers])
        self._norm = _weight_of(model.model.norm)
        self._epsilon: float = model.model.norm.variance_epsilon
        self._kept = kept

    def forward(
        self,
        states: Tensor,
        rotation: tuple[Tensor, Tensor],
        memory: tuple[list[Tensor], list[Tensor]],
        places: SegmentPlaces,
    ) -> tuple[Tensor, Tensor]:
        """[1, T, H] of states [1, T, H], and the output of the layer that is kept."""
        keys, values = memory
        kept = states
        for index, layer in enumerate(self._layers):
            states = layer(states, rotation, (keys[index], values[index]), places)
            if index == self._kept:
                kept = states
        return _normed(states, self._norm, self._epsilon), kept


class _EndToEnd(nn.Module):
    """Layers of the same rows that are not merged."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self._layers = nn.ModuleList(layers)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.cat([layer(rows) for layer in self._layers], dim=-1)


def _added(mask: Tensor, states: Tensor) -> Tensor:
    """A mask of the same shape that is added to scores: as attention would make it, layer by layer."""
    return torch.zeros_like(mask, dtype=states.dtype).masked_fill_(~mask, -torch.inf)


def _weight_of(norm: Any) -> Tensor:
    weight: Tensor = norm.weight.detach()
    return weight


def _normed(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The output of what transformers calls RMSNorm."""
    wide = states.float()
    wide = wide * (wide * wide).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return wide.to(states.dtype) * weight


def _together(*layers: nn.Module) -> nn.Module:
    """What gives the outputs of `layers` end to end."""
    first = layers[0]
    return first.merged.packed if isinstance(first, MergedPart) else _EndToEnd(*layers)


def _in_one_call(layers: _Layers) -> nn.Module:
    """`layers` without Python, where TorchScript can do that."""
    try:
        with warnings.catch_warnings():
            # torch 2.13 deprecates it; nothing else calls these kernels without Python and without a compiler.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            one_call: nn.Module = torch.jit.script(layers)
            return one_call
    except (
        Exception
    ) as error:  # without source code; or whatever it raises on a later Python, which it does not support
        _logger.warning("passes run as Python, which is slower: TorchScript says %s", error)
        return layers
