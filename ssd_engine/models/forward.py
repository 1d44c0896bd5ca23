"""How a model's `forward` is called, where transformers' versions differ."""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel


def cache_argument(model: PreTrainedModel) -> str:
    """The name of the argument that takes the key-value cache: transformers 5.24 calls it `cache`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
