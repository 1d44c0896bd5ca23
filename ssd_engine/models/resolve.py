"""From one side of a pair to what a loader reads."""

from __future__ import annotations

from pathlib import Path

from ssd_engine.models.cache import converted_folder
from ssd_engine.models.convert import ensure_converted, is_converted
from ssd_engine.models.hub import download_repository, downloaded_repository
from ssd_engine.models.presets import GGUFSource, ModelSource
from ssd_engine.models.progress import Stage, tqdm_stage


def resolve(source: ModelSource, stage: Stage = tqdm_stage) -> str:
    """What transformers loads: a folder for a GGUF source (made on first use), a hub id as it is."""
    return str(ensure_converted(source, stage)) if isinstance(source, GGUFSource) else source


def pull(source: ModelSource, stage: Stage = tqdm_stage) -> Path:
    """Bring the model to this machine, ready to load, and return its folder. Raises `ModelLoadError`."""
    return ensure_converted(source, stage) if isinstance(source, GGUFSource) else download_repository(source)


def local_folder(source: ModelSource) -> Path | None:
    """Where the model lies ready to load; None when it has still to be pulled."""
    if isinstance(source, GGUFSource):
        return converted_folder(source) if is_converted(source) else None
    return downloaded_repository(source)
