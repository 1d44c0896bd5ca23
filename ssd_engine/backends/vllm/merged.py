"""A draft with its adapter merged into it, in a folder: vLLM takes no adapter for a draft."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from ssd_engine.backends.transformers.loader import (
    NO_ADAPTER,
    LoadOptions,
    load_signals,
    load_tokenizer,
    load_unprepared,
    require_signals,
)
from ssd_engine.draft_signals import FILE as SIGNALS_FILE
from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import cache_folder, locked
from ssd_engine.models.progress import tqdm_stage


def merged_draft(draft: str | Path, adapter: str | Path | None) -> str:
    """The draft as vLLM loads it: with an adapter, a folder in the cache, made on first use.

    Raises:
        ModelLoadError: the adapter is no folder, or does not fit the draft.
    """
    if adapter is None or adapter == NO_ADAPTER:
        return str(draft)
    folder = cache_folder() / "merged" / _mark(draft, Path(adapter))
    with locked(folder, f"{Path(draft).name} with its adapter", tqdm_stage):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            model, signals = load_unprepared(draft, LoadOptions(device="cpu"), adapter), load_signals(draft, adapter)
            require_signals(model, signals, model.config.get_text_config().vocab_size)
            model.save_pretrained(unfinished)
            signals.save(unfinished)
            load_tokenizer(draft).save_pretrained(unfinished)
            unfinished.rename(folder)
    return str(folder)


def _mark(draft: str | Path, adapter: Path) -> str:
    """A name that changes with the draft's files and the adapter's."""
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelLoadError(
            f"adapter {str(adapter)!r} is no folder with {weights.name}; fetch it first, or merge it with "
            "ssd align --merged"
        )
    digest = hashlib.sha256(weights.read_bytes())
    signals = adapter / SIGNALS_FILE
    digest.update(signals.read_bytes() if signals.is_file() else b"")
    digest.update(str(draft).encode())
    for path in sorted(Path(draft).glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    return f"{Path(draft).name}-{digest.hexdigest()[:12]}"
