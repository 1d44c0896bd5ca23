"""The user's folder of fetched models, and the lock that lets one process at a time fill a part of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from platformdirs import user_cache_path

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.presets import GGUFSource
from ssd_engine.models.progress import Stage

CACHE_VARIABLE = "SSD_CACHE_DIR"
MANIFEST = "ssd-manifest.json"
"""In a folder that was made here: what it was made of."""


def cache_folder() -> Path:
    """The cache: `SSD_CACHE_DIR` where it is set, else the platform's folder for caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else user_cache_path("ssd-integrations", appauthor=False)


def gguf_path(source: GGUFSource) -> Path:
    """Where the verified GGUF file lies once it is fetched. Its checksum is in the path: other bytes, other folder."""
    return cache_folder() / "gguf" / source.sha256[:12] / source.filename


def converted_models() -> Path:
    """The folder of the converted models."""
    return cache_folder() / "converted"


def converted_folder(source: GGUFSource) -> Path:
    """Where the converted model lies once it is made."""
    return converted_models() / source.title


@contextmanager
def locked(path: Path, title: str, stage: Stage) -> Iterator[None]:
    """Hold the lock beside `path`, alone of all processes; a folder that cannot be written raises `ModelLoadError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _acquired(FileLock(f"{path}.lock"), title, stage):
            yield
    except OSError as error:
        raise ModelLoadError(
            f"{title} cannot be kept in {path.parent}: {error}. Make room or set {CACHE_VARIABLE} to another folder."
        ) from error


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, empty at first and gone in the end; what a killed process left there goes first."""
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _acquired(lock: BaseFileLock, title: str, stage: Stage) -> AbstractContextManager[object]:
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        with stage(f"Another process is preparing {title}; waiting for it", None):
            return lock.acquire()
