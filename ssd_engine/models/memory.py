"""How many token positions the key-value caches of a pair hold, and whether the memory is there."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from ssd_engine.errors import ModelLoadError

_POSITIONS_PER_SEQUENCE = 4096
_LONG_CONTEXT = 32768
_SHARE_OF_AVAILABLE = 0.5


def plan_positions(
    bytes_per_position: int,
    max_batch_size: int,
    context_length: int | None,
    device: torch.device,
    kv_cache_bytes: int | None = None,
    *,
    reserved_bytes: int = 0,
) -> int:
    """Token positions for the caches of both models.

    Args:
        bytes_per_position: keys and values of one position in both models.
        max_batch_size: sequences that decode together.
        context_length: most positions that one sequence can use; None where there is no limit.
        device: where the caches live.
        kv_cache_bytes: memory for them. None: room for `max_batch_size` sequences of 4,096 positions and for one long
            context (32,768 positions), or half of the memory that is available, whichever is less.
        reserved_bytes: what weights that are not loaded yet will take of it.

    Raises:
        ModelLoadError: the memory is not there.
    """
    available = max(available_bytes(device) - reserved_bytes, 0)
    if kv_cache_bytes is None:
        longest = context_length or _LONG_CONTEXT
        wanted = max(max_batch_size * min(longest, _POSITIONS_PER_SEQUENCE), min(longest, _LONG_CONTEXT))
        positions = min(wanted, int(available * _SHARE_OF_AVAILABLE) // bytes_per_position)
        needed = min(longest, 512) * bytes_per_position
        if positions * bytes_per_position < needed:
            raise ModelLoadError(
                f"no memory is left for the key-value caches: a sequence of {min(longest, 512)} positions needs "
                f"{_gigabytes(needed)}, and {_gigabytes(available)} are available on {device}; use a smaller pair"
            )
        return positions
    if kv_cache_bytes > available:
        raise ModelLoadError(
            f"kv_cache_bytes={kv_cache_bytes} asks for {_gigabytes(kv_cache_bytes)}, and {_gigabytes(available)} are "
            f"available on {device}; ask for less, or leave it out"
        )
    if kv_cache_bytes < bytes_per_position:
        raise ModelLoadError(
            f"kv_cache_bytes={kv_cache_bytes} holds no token: one position of this pair takes {bytes_per_position} "
            "bytes; give more, or leave it out"
        )
    return kv_cache_bytes // bytes_per_position


def require_room(sources: Sequence[str | Path], device: str) -> None:
    """Raise `ModelLoadError` where folders' weights are more than the memory that is left: else loading is killed."""
    needed = sum(map(stored_bytes, sources))
    available = available_bytes(torch.device(device))
    if needed > available:
        names = " and ".join(repr(str(source)) for source in sources)
        raise ModelLoadError(
            f"{names} needs at least {_gigabytes(needed)} of memory, and {_gigabytes(available)} are available on "
            f"{device}; close what else runs there, or use a smaller model"
        )


def stored_bytes(source: str | Path) -> int:
    """What the weights in a folder take on disk; 0 for what is no folder."""
    return sum(path.stat().st_size for path in Path(source).glob("*.safetensors"))


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def return_freed_memory() -> None:
    """Give freed memory back to the system; glibc keeps blocks of the size of a layer's weights, up to a gigabyte."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
