"""Keys and values of all sequences in one model: preallocated, written by position, rolled back by moving a length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from ssd_engine.backends.transformers.arena import Arena
from ssd_engine.errors import ModelLoadError

# By name, since the oldest transformers that is supported has no DummyLayer.
_ROLLED_BACK_BY_LENGTH = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")


def count_cache_layers(config: PretrainedConfig) -> int:
    """Layers that hold keys and values; `ModelLoadError` where some layer's state cannot be rolled back."""
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, AttributeError) as error:
        raise ModelLoadError(
            f"model type {config.model_type!r} has no key-value cache that this engine knows; "
            "use a model with attention layers only"
        ) from error
    for layer in layers:
        if type(layer).__name__ not in _ROLLED_BACK_BY_LENGTH:
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
        """Bytes that the cache takes."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class _Layer(CacheLayerMixin):
    """One attention layer, [1, heads, positions, head_dim].

    A sliding-window layer keeps all positions too; the mask hides the old ones.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, positions: int) -> None:
        super().__init__()
        self._positions = positions

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_empty(1, states.shape[1], self._positions, states.shape[-1])
            for states in (key_states, value_states)
        )
        if self.device.type != "cpu":  # there, memory is taken as it is first written
            for states in (self.keys, self.values):
                states.zero_()  # a pass that masks positions still reads them, and must find numbers
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The states as they are: attention keeps them, by `write`."""
        return key_states, value_states

    def write(self, at: Tensor, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Keep states at the positions `at`, [T] int64; returns every position's."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        at = at.to(key_states.device)
        if self.device.type != "cpu":
            # Of other sequences' positions too, for the same reason; whoever overflows has itself to blame.
            key_states, value_states = (states.nan_to_num(0.0, 0.0, 0.0) for states in (key_states, value_states))
        self.keys.index_copy_(2, at, key_states)
        self.values.index_copy_(2, at, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._positions, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._positions


class KVCache(Cache):
    """`positions` token positions, which sequences share: each holds a contiguous stretch of its own.

    Memory is taken at the first write and never grows.
    """

    layers: list[_Layer]

    def __init__(self, num_layers: int, positions: int) -> None:
        super().__init__(layers=[_Layer(positions) for _ in range(num_layers)])
        self.positions = positions
        self.arena = Arena(positions)

    @property
    def nbytes(self) -> int:
        """Bytes that are taken; 0 before the first write."""
        return sum(
            tensor.nbytes for layer in self.layers for tensor in (layer.keys, layer.values) if tensor is not None
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The states as they are, whatever the layer: attention keeps them, by `write`."""
        return key_states, value_states

    def write(self, layer: int, at: Tensor, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's states at the positions `at`, [T] int64; returns every position's."""
        return self.layers[layer].write(at, key_states, value_states)

    def memory(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of all layers, which take memory now if they have none: of the shape of `like`, [1, K, T, d].

        `write` need not be called then.
        """
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for layer in self.layers:
            if layer.keys is None or layer.values is None:
                layer.lazy_initialization(like, like)
            assert layer.keys is not None
            assert layer.values is not None
            keys.append(layer.keys)
            values.append(layer.values)
        return keys, values

    def snapshot(self, stretch: range) -> Snapshot:
        """A copy of some positions."""
        where = slice(stretch.start, stretch.stop)
        filled = [(layer.keys, layer.values) for layer in self.layers if layer.keys is not None]
        return Snapshot(
            tuple(keys[:, :, where].clone() for keys, _ in filled),
            tuple(values[:, :, where].clone() for _, values in filled if values is not None),
        )

    def restore(self, snapshot: Snapshot, stretch: range) -> None:
        """Write the beginning of `snapshot`, as long as `stretch`, there."""
        length = len(stretch)
        at = torch.arange(stretch.start, stretch.stop)
        for layer, keys, values in zip(self.layers, snapshot.keys, snapshot.values, strict=True):
            layer.write(at, keys[:, :, :length], values[:, :, :length])
