"""What this machine has to run models on, and how fast it reads memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import torch

from ssd_engine.evaluation.machine import processor
from ssd_engine.models.checkpoints import packed_layer
from ssd_engine.models.linear import HalfLinear, PackedLinear

_INSTRUCTIONS = (
    ("AVX2", "_is_avx2_supported"),
    ("AVX-512", "_is_avx512_supported"),
    ("VNNI (int8)", "_is_vnni_supported"),
    ("AVX-512 BF16", "_is_avx512_bf16_supported"),
    ("AMX", "_is_amx_tile_supported"),
)
_FORMS: dict[type | None, str] = {
    PackedLinear: "bfloat16, multiplied as it is (oneDNN)",
    HalfLinear: "float16, computed in float32 (FBGEMM): no bfloat16 arithmetic here",
    None: "as they are stored",
}


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A GPU."""

    name: str
    memory_free: int
    memory_total: int


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """This machine; memory in bytes."""

    processor: str
    cores: int
    threads: int
    """That torch computes with."""
    instructions: list[str]
    memory_free: int
    memory_total: int
    accelerators: list[Accelerator]
    weights: str
    """How the weights of a bfloat16 checkpoint are held where nothing else is said."""


def hardware() -> Hardware:
    """As torch and the system tell it."""
    memory = psutil.virtual_memory()
    accelerators = [_accelerator(index) for index in range(torch.cuda.device_count())]
    other = None if accelerators else torch.accelerator.current_accelerator(check_available=True)
    device = "cuda" if accelerators else "cpu" if other is None else other.type
    layer = packed_layer(device, torch.bfloat16, is_int8=False)
    return Hardware(
        processor=processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instructions=[name for name, check in _INSTRUCTIONS if getattr(torch.cpu, check, bool)()],
        memory_free=memory.available,
        memory_total=memory.total,
        accelerators=accelerators,
        weights=f"{_FORMS[layer]}; on {device}" if layer is None else _FORMS[layer],
    )


def _accelerator(index: int) -> Accelerator:
    free, total = torch.cuda.mem_get_info(index)
    return Accelerator(name=torch.cuda.get_device_name(index), memory_free=free, memory_total=total)
