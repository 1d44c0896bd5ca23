"""Where a model's weights are, or what has still to be fetched of them. The hub is asked for sizes alone."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from ssd_engine.models.cache import CACHE_VARIABLE, cache_folder, gguf_path
from ssd_engine.models.convert import DISK_PER_BYTE, MEMORY_PER_BYTE
from ssd_engine.models.hub import downloaded_repository, is_repository, repository_bytes
from ssd_engine.models.presets import SAFE_DRAFTS, GGUFSource, HubSource, ModelSource
from ssd_engine.models.resolve import local_folder
from ssd_engine.models.source_error import SourceError

State = Literal["here", "to be converted", "to be fetched", "missing"]


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a model is."""

    state: State
    path: str | None = None
    """The folder or GGUF file that it is loaded from; None: it is not ready to load."""
    fetched_bytes: int = 0
    """What has still to be downloaded."""
    problem: str | None = None
    """Why it cannot be had."""


def locate(source: ModelSource | str, revision: str | None) -> Location:
    """Where a model is, given by a preset's source, or as the user names it."""
    if isinstance(source, GGUFSource):
        return _of_gguf(source)
    if isinstance(source, HubSource):
        return _of_repository(source.repo, source.revision)
    if Path(source).exists():
        return Location(state="here", path=str(source))
    if is_repository(str(source)):
        return _of_repository(str(source), revision)
    return Location(
        state="missing",
        problem=f"{str(source)!r} does not exist; give a folder, a GGUF file, or a hub id (org/name); for a draft, "
        f"{' or '.join(SAFE_DRAFTS)} too",
    )


def _of_gguf(source: GGUFSource) -> Location:
    folder = local_folder(source)
    if folder is not None:
        return Location(state="here", path=str(folder))
    is_fetched = gguf_path(source).exists()
    to_fetch = 0 if is_fetched else source.size
    return Location(
        state="to be converted" if is_fetched else "to be fetched",
        fetched_bytes=to_fetch,
        problem=_lack_of_room(source, to_fetch),
    )


def _lack_of_room(source: GGUFSource, to_fetch: int) -> str | None:
    """What stands in the way of fetching and converting a file."""
    folder = cache_folder()
    kept = next(path for path in (folder, *folder.parents) if path.exists())
    wanted, free = to_fetch + int(source.size * DISK_PER_BYTE), shutil.disk_usage(kept).free
    if wanted > free:
        return (
            f"{source.title} takes {wanted / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free there; make "
            f"room, or set {CACHE_VARIABLE} to another folder"
        )
    memory, available = source.size * MEMORY_PER_BYTE, psutil.virtual_memory().available
    if memory > available:
        return (
            f"{source.title} takes about {memory / 1e9:.1f} GB of memory while it is converted, once, and "
            f"{available / 1e9:.1f} GB are free; close what else runs, or set {CACHE_VARIABLE} to the cache of a "
            "machine that has it"
        )
    return None


def _of_repository(repo: str, revision: str | None) -> Location:
    folder = downloaded_repository(repo, revision)
    if folder is not None:
        return Location(state="here", path=str(folder))
    try:
        return Location(state="to be fetched", fetched_bytes=repository_bytes(repo, revision))
    except SourceError as error:
        return Location(
            state="missing",
            problem=f"{repo} is not on this machine, and cannot be fetched: {error}; check the name, the network and, "
            "for gated models, your access (hf auth login)",
        )
