"""PairOutlook: how this backend would run a pair, told from the models' configurations, before weights are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from ssd_engine.backends.transformers.attention import use_segment_attention
from ssd_engine.backends.transformers.kv_cache import count_cache_layers
from ssd_engine.backends.transformers.parts import MAX_BATCH_SIZE
from ssd_engine.errors import ModelLoadError
from ssd_engine.models.checkpoints import LoadOptions, packed_layer
from ssd_engine.models.linear import HalfLinear, Int8Linear, PackedLinear
from ssd_engine.models.memory import plan_positions
from ssd_engine.models.pair import PairSpec
from ssd_engine.models.sizes import WeightCounts, bytes_per_position, dtype_of, without_weights

_FORMS = {
    Int8Linear: "int8",
    HalfLinear: "float16, packed for FBGEMM, computed in float32",
    PackedLinear: "bfloat16, packed for oneDNN",
}


@dataclass(frozen=True, kw_only=True)
class ModelOutlook:
    """How one model would be held."""

    parameters: int
    form: str
    """Of its linear layers' weights."""
    bytes_held: int
    bytes_read: int
    """By a forward pass of one token, at least."""
    bytes_per_position: int
    """Of its key-value cache."""

    @classmethod
    def of(cls, config: PreTrainedConfig, options: LoadOptions, device: torch.device) -> ModelOutlook:
        """Raises `ModelLoadError` where this backend cannot run models of this kind, or not in this way."""
        model = without_weights(config)
        use_segment_attention(model, count_cache_layers(model.config))
        counts, dtype = (
            WeightCounts.of(model),
            dtype_of(config, None if options.dtype == "auto" else str(options.dtype)),
        )
        layer = packed_layer(device.type, dtype, is_int8=options.is_int8)
        computed_in = torch.float32 if layer in (Int8Linear, HalfLinear) else dtype
        return cls(
            parameters=counts.total,
            form=str(dtype).removeprefix("torch.") if layer is None else _FORMS[layer],
            bytes_held=counts.bytes_held(layer, dtype),
            bytes_read=counts.bytes_read(layer, dtype),
            bytes_per_position=bytes_per_position(config, computed_in),
        )


@dataclass(frozen=True, kw_only=True)
class PairOutlook:
    """How a pair would be held, and where."""

    spec: PairSpec
    device: torch.device
    target: ModelOutlook
    draft: ModelOutlook

    @classmethod
    def of(cls, spec: PairSpec, target: PreTrainedConfig, draft: PreTrainedConfig) -> PairOutlook:
        """Raises `ModelLoadError` where a model or the device cannot be used."""
        options = LoadOptions.of(spec)
        device = _device(options[0])
        return cls(
            spec=spec,
            device=device,
            target=ModelOutlook.of(target, options[0], device),
            draft=ModelOutlook.of(draft, options[1], device),
        )

    @property
    def bytes_per_position(self) -> int:
        """Of both key-value caches."""
        return self.target.bytes_per_position + self.draft.bytes_per_position

    def positions(self, context_length: int | None) -> int:
        """Token positions that the caches would have beside the weights; `ModelLoadError` where they do not fit."""
        return plan_positions(
            self.bytes_per_position,
            self.spec.max_batch_size or MAX_BATCH_SIZE,
            context_length,
            self.device,
            self.spec.kv_cache_bytes,
            reserved_bytes=self.target.bytes_held + self.draft.bytes_held,
        )


def _device(options: LoadOptions) -> torch.device:
    placement = options.placement
    try:
        device = torch.device(placement if isinstance(placement, str) else "cpu")
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ModelLoadError(
            f"device={placement!r} cannot be used: {str(error).strip().splitlines()[0]}; leave it out, or use 'cpu'"
        ) from error
    return device
