"""LayerStates: what one decoder layer makes of the tokens of a pass, without a pass of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ssd_engine.errors import ModelLoadError


class LayerStates:
    """Keeps the output of a model's decoder layer, pass by pass."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        """`layer` counts from 1. Raises `ModelLoadError` where the model has no such layer."""
        self.latest: Tensor | None = None
        """[1, T, H] of the latest pass: the residual stream after the layer, before any final norm."""
        layers = decoder_layers(model)
        if not 1 <= layer <= len(layers):
            raise ModelLoadError(f"layer={layer}: model type {model.config.model_type!r} has {len(layers)} layers")
        self.index = layer - 1
        """Of the layer, counted from 0."""
        self._hook = layers[self.index].register_forward_hook(self._keep_output)

    def close(self) -> None:
        """Leave the model as it was."""
        self._hook.remove()

    def _keep_output(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self.latest = output[0] if isinstance(output, tuple) else output


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The model's decoder layers, in their order; none for a family that does not name them."""
    kinds = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]
