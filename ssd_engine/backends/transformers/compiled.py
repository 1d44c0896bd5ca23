"""CompiledPasses: a model's passes through `torch.compile`, small operators fused, little Python between products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ssd_engine.backends.transformers.layer_states import decoder_layers
from ssd_engine.errors import ModelLoadError


class CompiledPasses:
    """A model as a compiled function; compiled at its first calls, once for any number of tokens and once for one."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises `ModelLoadError` where the model's passes cannot be compiled."""
        if not _is_causal(model):
            raise ModelLoadError(
                f"model type {model.config.model_type!r} has layers with a sliding window, which cannot be compiled; "
                "leave compile out"
            )
        self._model = model
        self._layers = _layers(model)
        self._share_code()
        settings: dict[str, Any] = {
            "fullgraph": True,
            "dynamic": False,  # but for what is marked below
            "isolate_recompiles": True,
            # The products have threads of their own, and two pools would wait for each other in turns.
            "options": {"cpp.threads": 1},
        }
        self._compiled = torch.compile(model, **settings)

    def __call__(self, **inputs: Any) -> Any:
        """A pass of the compiled model."""
        for value in inputs.values():
            if isinstance(value, Tensor) and value.shape[1] > 1:
                torch._dynamo.mark_dynamic(value, 1)
        return self._compiled(**inputs)

    def close(self) -> None:
        """Give the model its own layers back."""
        for layer in self._layers:
            vars(layer).pop("forward", None)

    @contextmanager
    def reporting_failure(self) -> Iterator[None]:
        """Turn what goes wrong in compiling into a `ModelLoadError`."""
        # Here, since torch's compiler takes a second to import.
        from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException

        try:
            yield
        except TorchDynamoException as error:
            self.close()
            reason = " ".join(str(error).split("\n\n")[0].split())
            needs = "a C++ compiler on a CPU, and Triton on a GPU, are needed for it; "
            raise ModelLoadError(
                f"model type {self._model.config.model_type!r} could not be compiled ({reason}); "
                f"{needs if isinstance(error, BackendCompilerFailed) else ''}leave compile out"
            ) from error

    def _share_code(self) -> None:
        """Have what the layers have in common compiled once, not once a layer."""
        regions: dict[type, Callable[..., Any]] = {}
        for layer in self._layers:
            kind = type(layer)
            if kind not in regions:
                regions[kind] = torch.compiler.nested_compile_region(kind.forward)
            # Not a bound method: torch 2.14 would have every layer compute with the first one's weights.
            layer.forward = partial(regions[kind], layer)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    layers = decoder_layers(model)
    if not layers:
        raise ModelLoadError(
            f"model type {model.config.model_type!r} does not name its layers, so it cannot be compiled; "
            "leave compile out"
        )
    return layers


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether every token of every layer sees all tokens before it."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds) == {"full_attention"}
    return not getattr(config, "sliding_window", None)
