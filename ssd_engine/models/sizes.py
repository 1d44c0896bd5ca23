"""What a model takes, told from its configuration: its weights' type and number, and its cache's bytes a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.checkpoints import LoadOptions, as_dtype, load_config, packed_layer
from ssd_engine.models.linear import Int8Linear


def dtype_of(config: PreTrainedConfig, dtype: str | None) -> torch.dtype:
    """The type that weights are loaded in; the checkpoint's own where none is given."""
    own = config.get_text_config().dtype
    return as_dtype(dtype) if dtype is not None else own or torch.float32


def bytes_read(source: str, options: LoadOptions) -> int:
    """What a forward pass of one token reads of a model's weights at least."""
    config = load_config(source, options.revision)
    dtype = dtype_of(config, None if options.dtype == "auto" else str(options.dtype))
    layer = packed_layer(options.placement_type or "", dtype, is_int8=options.is_int8)
    return WeightCounts.of(without_weights(config)).bytes_read(layer, dtype)


def bytes_per_position(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers, computed in `dtype`."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * int(text.num_hidden_layers * heads * size * dtype.itemsize)


def without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration, on the meta device, where weights have shapes alone; raises `ModelLoadError`."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ImportError, KeyError, RuntimeError, ValueError) as error:
        raise ModelLoadError(
            f"model type {config.model_type!r} cannot be made: {str(error).strip().splitlines()[0]} "
            "Use a causal language model that this transformers knows."
        ) from error
    return model


@dataclass(frozen=True, kw_only=True)
class WeightCounts:
    """Numbers that a model's weights are made of."""

    linear: int
    """In linear layers, which each token reads."""
    other: int
    """In all else, of which the embedding is by far the most: a token reads one row of it."""
    shared: int
    """In both: a last layer may have the embedding for its weight."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """Of a model, with its weights or without."""
        weights = [layer.weight for layer in model.modules() if type(layer) is nn.Linear]
        embedding = model.get_input_embeddings().weight
        linear, total = (sum(each.numel() for each in of) for of in (weights, model.parameters()))
        shared = sum(weight.numel() for weight in weights if weight is embedding)
        return cls(linear=linear, other=total - linear + shared, shared=shared)

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.other - self.shared

    def bytes_read(self, layer: type[nn.Module] | None, dtype: torch.dtype) -> int:
        """What a forward pass of one token reads at least, where `layer` stands for linear ones (`packed_layer`)."""
        return self.linear * (1 if layer is Int8Linear else dtype.itemsize)

    def bytes_held(self, layer: type[nn.Module] | None, dtype: torch.dtype) -> int:
        """What the loaded weights take in memory."""
        apart = self.other if layer is not None else self.other - self.shared
        return self.bytes_read(layer, dtype) + apart * dtype.itemsize
