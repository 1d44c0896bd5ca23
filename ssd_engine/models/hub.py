"""The model hub as a source, and the decision whether it is worth asking at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.utils import get_session
from tqdm.auto import tqdm

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.presets import GGUFSource
from ssd_engine.models.progress import Stage
from ssd_engine.models.source_error import SourceError

_PROBE_SECONDS = 5.0
_HUB_ERRORS = (OSError, httpx.HTTPError, RuntimeError, ValueError)
"""What huggingface_hub and its transfer back-ends raise when a download does not succeed."""
_MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
"""Never pickled weights, never code."""
_OTHER_FORMATS = ["original/*", "consolidated*"]
"""The same weights once more, as transformers does not read them."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


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


def is_repository(source: str) -> bool:
    """Whether a model's name is taken for a repository of the hub: it is nothing on this machine, and no path."""
    return not Path(source).exists() and _REPOSITORY.fullmatch(source) is not None and not source.endswith(".gguf")


def download_repository(repo: str, revision: str | None, stage: Stage) -> Path:
    """Download a model into the hub's own cache; raises `ModelLoadError`. None: the main branch."""
    try:
        with stage(f"Fetching {repo}", repository_bytes(repo, revision)) as advance:
            return Path(_snapshot(repo, revision, tqdm_class=_reporting_to(advance)))
    except (SourceError, *_HUB_ERRORS) as error:
        raise ModelLoadError(
            f"{repo} could not be fetched from the model hub (commit {revision or 'main'}): {_first_line(error)}. "
            "Check your network and, for gated models, your access (hf auth login)."
        ) from error


def downloaded_repository(repo: str, revision: str | None) -> Path | None:
    """Where the hub's own cache holds the whole of a model, if it does. The hub is not asked."""
    try:
        folder = Path(_snapshot(repo, revision, local_files_only=True))
    except _HUB_ERRORS:
        return None
    return folder if _is_whole(folder) else None


def repository_bytes(repo: str, revision: str | None) -> int:
    """What is still to be downloaded of a model, of which nothing is; `SourceError` where the hub does not say."""
    require_hub()
    try:
        files = _snapshot(repo, revision, dry_run=True, tqdm_class=_reporting_to(lambda count: None))
        return sum(file.file_size for file in files if file.will_download)
    except _HUB_ERRORS as error:
        raise SourceError(f"{repo}: {_first_line(error)}") from error


def _snapshot(repo: str, revision: str | None, **options: Any) -> Any:
    return snapshot_download(
        repo, revision=revision, allow_patterns=_MODEL_FILES, ignore_patterns=_OTHER_FORMATS, **options
    )


def _is_whole(folder: Path) -> bool:
    """Whether no file of the weights is missing, as after a download that was interrupted."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        shards = set(index["weight_map"].values())
    except (OSError, ValueError, KeyError):
        shards = {"model.safetensors"}
    return all((folder / name).is_file() for name in ("config.json", *shards))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def _reporting_to(advance: Callable[[int], object]) -> type[tqdm[Any]]:
    """The hub's client reports to a tqdm class; this one passes the bytes on and draws nothing."""

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            # Of a repository there are bars of files too, and one of the same bytes as they come over the wire.
            self._counts = options.get("unit") == "B" and options.get("desc") != "Downloading bytes"
            self.update(initial)

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts:
                advance(int(n or 0))
            return None

    return Reporting
