"""How fast a device reads its memory, which bounds how fast a model can answer."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import torch

_SECONDS = 1.0
_MOST_READ = 2**29
"""Bytes that are read over and over: more than caches hold."""


def memory_bandwidth(device: torch.device) -> float:
    """Bytes a second that `device` reads at best, of several ways and tries; takes about two seconds.

    What else runs on the machine counts.
    """
    free = psutil.virtual_memory().available if device.type == "cpu" else _MOST_READ * 8
    columns = 4096
    rows = max(min(_MOST_READ, free // 8) // (4 * columns), 1)
    matrix, vector = torch.ones(rows, columns, device=device), torch.ones(columns, device=device)
    return max(matrix.nbytes / _best_seconds(read, device) for read in (matrix.sum, lambda: matrix @ vector))


def _best_seconds(read: Callable[[], object], device: torch.device) -> float:
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        read()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
