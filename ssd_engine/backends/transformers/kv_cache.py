"""Keys and values of one sequence in one model, preallocated, written by position, rolled back by moving a length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from ssd_engine.errors import ModelLoadError

_ROLLED_BACK_BY_LENGTH = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


def count_cache_layers(config: PretrainedConfig) -> int:
    """Layers that hold keys and values; `ModelLoadError` where some layer's state cannot be rolled back."""
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, AttributeError) as error:
        raise ModelLoadError(
            f"model type {config.model_type!r} has no key-value cache that this engine knows"
        ) from error
    for layer in layers:
        if type(layer) not in _ROLLED_BACK_BY_LENGTH:
            raise ModelLoadError(
                f"model type {config.model_type!r} keeps a {type(layer).__name__}, whose state cannot be rolled back "
                "after a rejected draft; use a model with attention layers only"
            )
    return len(layers)


@dataclass(frozen=True)
class Snapshot:
    """Keys and values of a prefix, one [1, heads, length, head_dim] pair a layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class _Layer(CacheLayerMixin):
    """One attention layer. A sliding-window layer keeps all positions too; the model's own mask hides the old ones."""

    is_croppable = True
    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, key_size = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(rows, heads, self.capacity, key_size)
        self.values = value_states.new_empty(rows, value_states.shape[1], self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class KVCache(Cache):
    """The cache of one sequence. `length` positions have been read; `capacity` is the most there can be."""

    layers: list[_Layer]

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[_Layer(capacity) for _ in range(num_layers)])

    @property
    def length(self) -> int:
        return max((layer.length for layer in self.layers), default=0)

    def roll_back(self, length: int) -> None:
        """Forget every position from `length` on."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def snapshot(self, length: int) -> Snapshot:
        """A copy of the first `length` positions."""
        filled = [layer for layer in self.layers if layer.keys is not None and layer.values is not None]
        return Snapshot(
            tuple(layer.keys[:, :, :length].clone() for layer in filled if layer.keys is not None),
            tuple(layer.values[:, :, :length].clone() for layer in filled if layer.values is not None),
        )

    def restore(self, snapshot: Snapshot, length: int) -> None:
        """Begin an empty cache with the first `length` positions of `snapshot`."""
        for layer, keys, values in zip(self.layers, snapshot.keys, snapshot.values, strict=True):
            layer.update(keys[:, :, :length], values[:, :, :length])
