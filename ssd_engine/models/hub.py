"""The model hub as a source, and the decision whether it is worth asking at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.utils import get_session
from tqdm.auto import tqdm

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.presets import GGUFSource, HubSource
from ssd_engine.models.progress import Stage
from ssd_engine.models.source_error import SourceError

_PROBE_SECONDS = 5.0
_HUB_ERRORS = (OSError, httpx.HTTPError, RuntimeError, ValueError)
"""What huggingface_hub and its transfer back-ends raise when a download does not succeed."""
_MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
"""Never pickled weights, never code."""


def require_hub() -> None:
    """Raise `SourceError` unless the hub answers: its own client would go on trying for half a minute."""
    if constants.HF_HUB_OFFLINE:
        raise SourceError("not asked, because HF_HUB_OFFLINE is set")
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_SECONDS)
    except httpx.HTTPError as error:
        raise SourceError(f"{constants.ENDPOINT} cannot be reached ({error})") from error


def download_file(source: GGUFSource, folder: Path, stage: Stage) -> Path:
    """Download the source's file into `folder`; what an earlier try left there is gone on from."""
    require_hub()
    with stage(f"Fetching {source.title}", source.size) as advance:
        try:
            return Path(
                hf_hub_download(source.repo, source.filename, local_dir=folder, tqdm_class=_reporting_to(advance))
            )
        except _HUB_ERRORS as error:
            raise SourceError(f"{source.repo}: {_first_line(error)}") from error


def download_repository(source: HubSource) -> Path:
    """Download a model, at its commit, into the hub's own cache; raises `ModelLoadError`."""
    try:
        require_hub()
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=_MODEL_FILES))
    except (SourceError, *_HUB_ERRORS) as error:
        raise ModelLoadError(
            f"{source.repo} could not be fetched from the model hub (commit {source.revision}): {_first_line(error)}. "
            "Check your network and, for gated models, your access (hf auth login)."
        ) from error


def downloaded_repository(source: HubSource) -> Path | None:
    """Where the hub's own cache holds a model at its commit, if it does. The hub is not asked."""
    try:
        return Path(
            snapshot_download(source.repo, revision=source.revision, allow_patterns=_MODEL_FILES, local_files_only=True)
        )
    except _HUB_ERRORS:
        return None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def _reporting_to(advance: Callable[[int], object]) -> type[tqdm[Any]]:
    """The hub's client reports to a tqdm class; this one passes the bytes on and draws nothing."""

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            advance(initial)

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return None

    return Reporting
