"""LeanPasses: passes of models of the Llama kind on a CPU, with as few operators and as little Python as they need.

Transformers' own layers spend, on passes of a few tokens, as much time between the matrix products as in them. Here the
layers' parts are the model's own, and compute the same; only what lies between them is written out.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.attention import CAUSAL, Projections, pass_under_way
from ssd_engine.backends.transformers.layer_states import LayerStates
from ssd_engine.models.merged import MergedPart

_CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class LeanPasses:
    """A model as a function that computes what the model does."""

    def __init__(self, model: PreTrainedModel, states: LayerStates | None) -> None:
        """`states`: where the output of one of the layers is kept."""
        self._model = model
        self._states = states
        self._layers = [_Layer(layer) for layer in model.model.layers]

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

    def __call__(self, *, input_ids: Tensor, position_ids: Tensor, wants_logits: bool = True, **_: Any) -> Any:
        """A pass under way over tokens [1, T]; the `logits` [1, T, V] of what is returned are None if not wanted."""
        decoder = self._model.model
        states = decoder.embed_tokens(input_ids)
        cos, sin = decoder.rotary_emb(states, position_ids)
        half = sin.shape[-1] // 2
        # Half of a head's numbers change places and the others' sign: the sign is put into the sine once a pass.
        rotation = cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, :, None]
        for index, layer in enumerate(self._layers):
            states = layer(index, states, rotation)
            if self._states is not None:
                self._states.keep(index, states)
        states = _normed(decoder.norm, states)
        return SimpleNamespace(logits=self._model.lm_head(states) if wants_logits else None)


class _Layer:
    """One decoder layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._attention_norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._qkv = _together(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out = attention.o_proj
        self._gate_up = _together(mlp.gate_proj, mlp.up_proj)
        self._down = mlp.down_proj
        self._head_norms = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._head_size: int = attention.head_dim
        self._num_key_heads: int = attention.config.num_key_value_heads
        self._scaling: float = attention.scaling

    def __call__(self, index: int, states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """[1, T, H] of states [1, T, H]."""
        states = states + self._out(self._attend(index, self._qkv(_normed(self._attention_norm, states)), rotation))
        gate, up = self._gate_up(_normed(self._mlp_norm, states)).chunk(2, dim=-1)
        result: Tensor = states + self._down(nn.functional.silu(gate) * up)
        return result

    def _attend(self, index: int, qkv: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = rotation
        heads = qkv.unflatten(-1, (-1, self._head_size))
        turned, value = heads[:, :, : -self._num_key_heads], heads[:, :, -self._num_key_heads :]
        query_norm, key_norm = self._head_norms
        if query_norm is not None and key_norm is not None:
            query, key = turned[:, :, : -self._num_key_heads], turned[:, :, -self._num_key_heads :]
            turned = torch.cat([_normed(query_norm, query), _normed(key_norm, key)], dim=2)
        turned = turned * cos + turned.roll(self._head_size // 2, -1) * sin
        query, key = turned[:, :, : -self._num_key_heads], turned[:, :, -self._num_key_heads :]
        new = Projections(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), self._scaling, None)
        return pass_under_way().attend(index, CAUSAL, new).flatten(2)


class _EndToEnd:
    """Layers of the same rows that are not merged."""

    def __init__(self, *layers: nn.Module) -> None:
        self._layers = layers

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.cat([layer(rows) for layer in self._layers], dim=-1)


def _together(*layers: nn.Module) -> Any:
    """What gives the outputs of `layers` end to end."""
    first = layers[0]
    return first.merged if isinstance(first, MergedPart) else _EndToEnd(*layers)


def _normed(norm: Any, states: Tensor) -> Tensor:
    """The output of a layer of transformers' that is called RMSNorm."""
    if states.dtype is not torch.float32:
        normed: Tensor = norm(states)
        return normed
    return torch.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)
