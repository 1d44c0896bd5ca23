"""What a user may set of the vLLM backend."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ssd_engine.config import Settings


class VllmOptions(Settings):
    """How vLLM runs a pair. An unusable value raises `InvalidRequestError`."""

    tensor_parallel_size: int = Field(1, ge=1, description="Devices (on the CPU: processes) that share each layer.")
    pipeline_parallel_size: int = Field(1, ge=1, le=1, description="vLLM drafts with a model on one stage only.")
    max_batch_size: int = Field(64, ge=1, description="Most requests that decode together.")
    max_waiting: int = Field(16_384, ge=1, description="Most requests that wait for a place.")
    max_model_len: int | None = Field(
        None, ge=16, description="Most tokens, prompt and answer together. None: what models and caches have room for."
    )
    kv_cache_bytes: int | None = Field(
        None, ge=1, description="Memory for the key-value caches. None: on the CPU a part of what is free, else vLLM's."
    )
    compile: bool | None = Field(None, description="torch.compile and CUDA graphs. None: not on the CPU.")
    engine_args: dict[str, Any] = Field({}, description="Further arguments of vLLM's EngineArgs.")
