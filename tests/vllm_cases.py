"""What the tests of vLLM have in common; they run in an environment of its own (`make test-vllm`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

VLLM_OPTIONS: dict[str, Any] = {
    "backend": "vllm",
    "dtype": "float32",
    "max_model_len": 512,
    "kv_cache_bytes": 2**28,
}
PROMPTS = [[5 + i, 20, 33 + 2 * i, 47, 60, 71 + i] for i in range(8)]


def save_pair(folder: Path, target: PreTrainedModel, draft: PreTrainedModel, tokenizer: Any) -> tuple[str, str]:
    """The folders that a pair was saved in."""
    for name, model in (("target", target), ("draft", draft)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return str(folder / "target"), str(folder / "draft")
