"""A draft in a folder as vLLM takes it.

With its adapter merged into it, as many token ids as the target has, and no tensors but the model's.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import cache_folder, locked
from ssd_engine.models.checkpoints import LoadOptions, load_tokenizer, load_unprepared
from ssd_engine.models.pair import NO_ADAPTER
from ssd_engine.models.progress import tqdm_stage
from ssd_engine.rule.draft_signals import FILE as SIGNALS_FILE


def merged_draft(
    draft: str | Path,
    adapter: str | Path | None,
    revision: str | None = None,
    *,
    vocabulary_size: int | None = None,
) -> str:
    """The draft as vLLM loads it: a folder in the cache, where it is not the draft's own.

    Args:
        draft: folder or hub id.
        adapter: what is merged into it.
        revision: of the hub's repository.
        vocabulary_size: token ids that its embeddings are to be padded or cut to; None: as many as they are.

    Raises:
        ModelLoadError: the adapter is no folder, or does not fit the draft.
    """
    own = None if adapter is None or adapter == NO_ADAPTER else Path(adapter)
    if own is None and vocabulary_size is None:
        return _without_signals(Path(draft)) if (Path(draft) / SIGNALS_FILE).is_file() else str(draft)
    folder = cache_folder() / "merged" / _mark(draft, own, revision, vocabulary_size)
    with locked(folder, f"{Path(draft).name} for vLLM", tqdm_stage):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            how = LoadOptions(device="cpu", revision=revision)
            model = load_unprepared(draft, how, adapter)
            if vocabulary_size is not None:
                model.resize_token_embeddings(vocabulary_size, mean_resizing=False)
            model.save_pretrained(unfinished)
            load_tokenizer(draft, revision).save_pretrained(unfinished)
            unfinished.rename(folder)
    return str(folder)


def _without_signals(draft: Path) -> str:
    """A folder with links to a draft's other files: vLLM takes every safetensors file for a part of the model."""
    files = sorted(path.resolve() for path in draft.iterdir() if path.name != SIGNALS_FILE)
    mark = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:12]
    folder = cache_folder() / "merged" / f"{draft.name}-{mark}"
    with locked(folder, f"{draft.name} without its signals", tqdm_stage):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            for path in files:
                (unfinished / path.name).symlink_to(path)
            unfinished.rename(folder)
    return str(folder)


def _mark(draft: str | Path, adapter: Path | None, revision: str | None, vocabulary_size: int | None) -> str:
    """A name that changes with the draft's files, the adapter's and the size."""
    digest = hashlib.sha256()
    if adapter is not None:
        weights = adapter / "adapter_model.safetensors"
        if not weights.is_file():
            raise ModelLoadError(
                f"adapter {str(adapter)!r} is no folder with {weights.name}; fetch it first, or merge it with "
                "ssd align --merged"
            )
        digest.update(weights.read_bytes())
    digest.update(f"{draft}{revision or ''}{vocabulary_size or ''}".encode())
    for path in sorted(Path(draft).glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return f"{Path(draft).name}-{digest.hexdigest()[:12]}"
