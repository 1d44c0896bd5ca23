"""Passes compiled by `torch.compile`: small operators fused, and little Python between the products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from transformers import PreTrainedModel

from ssd_engine.errors import ModelLoadError


def compile_passes(model: PreTrainedModel) -> Callable[..., Any]:
    """`model` as a compiled function of keyword arguments; it is compiled at its first calls.

    There is code for any number of tokens, and code for one alone.

    Raises:
        ModelLoadError: torch is too old, some layers have a sliding window, or transformers does not say what this
            model's layers are.
    """
    if torch.__version__ < "2.13":  # compared as versions
        raise ModelLoadError(f"compile needs torch 2.13 or newer, and this is {torch.__version__}; leave compile out")
    if not _is_causal(model):
        raise ModelLoadError(
            f"model type {model.config.model_type!r} has layers with a sliding window, which cannot be compiled; "
            "leave compile out"
        )
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise ModelLoadError(
            f"model type {model.config.model_type!r} does not name its layers, so it cannot be compiled; "
            "leave compile out"
        )
    regions: dict[type, Callable[..., Any]] = {}
    for layer in layers:
        # What the layers have in common is compiled once, not once a layer.
        kind = type(layer)
        regions.setdefault(kind, torch.compiler.nested_compile_region(kind.forward))
        layer.forward = regions[kind].__get__(layer)
    settings: dict[str, Any] = {
        "fullgraph": True,
        "dynamic": False,  # but for what is marked below
        "isolate_recompiles": True,
        # The products have threads of their own, and two pools would wait for each other in turns.
        "options": {"cpp.threads": 1},
    }
    compiled = torch.compile(model, **settings)

    def call(**inputs: Any) -> Any:
        for value in inputs.values():
            if isinstance(value, Tensor) and value.shape[1] > 1:
                torch._dynamo.mark_dynamic(value, 1)
        return compiled(**inputs)

    return call


@contextmanager
def reporting_failure(model: PreTrainedModel) -> Iterator[None]:
    """Turn what goes wrong in compiling into a `ModelLoadError`."""
    try:
        yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise ModelLoadError(
            f"model type {model.config.model_type!r} could not be compiled ({reason}); this needs a C++ compiler on a "
            "CPU and Triton on a GPU. Leave compile out where it does not work."
        ) from error


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether every token of every layer sees all tokens before it."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return set(kinds) == {"full_attention"}
    return not getattr(config, "sliding_window", None)
