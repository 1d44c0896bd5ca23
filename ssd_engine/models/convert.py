"""Makes a safetensors copy of a GGUF model, once: it loads in seconds, where the GGUF file takes a minute and more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import MANIFEST, converted_folder, locked, workspace
from ssd_engine.models.fetch import fetch
from ssd_engine.models.presets import GGUFSource
from ssd_engine.models.progress import Stage, tqdm_stage

_MODEL = "model"
_FORMAT = 1
"""Raised whenever a conversion made by older code must not be used any more."""
_PROGRAM = Path(__file__).with_name("gguf_to_safetensors.py")
MEMORY_PER_BYTE = 6
"""Measured peak memory of a conversion, in sizes of a 4-bit GGUF file."""
DISK_PER_BYTE = 3
"""Measured size of the result, in sizes of a 4-bit GGUF file."""


def ensure_converted(source: GGUFSource, stage: Stage = tqdm_stage) -> Path:
    """A folder with the model in safetensors (bfloat16) and its tokenizer, fetched and converted on first use.

    The folder appears whole or not at all, and is made anew when it came from other bytes or an older format. The
    GGUF file stays in the cache, so that a new format needs no second download. Raises `ModelLoadError`.
    """
    with converting(source, stage):
        return converted_folder(source)


@contextmanager
def converting(source: GGUFSource, stage: Stage = tqdm_stage) -> Iterator[None]:
    """Fetches before the block and converts beside it, in a child process; the model is ready after the block."""
    if is_converted(source):
        yield
        return
    gguf = fetch(source, stage)
    folder = converted_folder(source)
    with locked(folder, source.title, stage):
        if is_converted(source):  # another process was here first
            yield
            return
        with (
            workspace(folder) as beside,
            stage(f"Converting {source.title} (once, a minute or two)", None),
        ):
            with _child_process(source, gguf, beside):
                yield
            if source.chat_template is not None:
                (beside / _MODEL / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")
            (beside / _MODEL / MANIFEST).write_text(json.dumps(_manifest(source)), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            (beside / _MODEL).replace(folder)


def is_converted(source: GGUFSource) -> bool:
    """Whether the cache holds a conversion of exactly these bytes in today's format."""
    try:
        manifest = json.loads((converted_folder(source) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest == _manifest(source))


def _manifest(source: GGUFSource) -> dict[str, object]:
    own = {} if source.chat_template is None else {"chat_template": source.chat_template}
    return {"format": _FORMAT, "sha256": source.sha256, "eos_token_ids": list(source.eos_token_ids), **own}


@contextmanager
def _child_process(source: GGUFSource, gguf: Path, beside: Path) -> Iterator[None]:
    """Converts beside the block and waits for it after the block; a block that fails ends the conversion too."""
    arguments = [str(gguf), str(beside / _MODEL), *map(str, source.eos_token_ids)]
    log = beside / "conversion.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            # -P keeps this package's modules from standing in for others of the same name
            [sys.executable, "-P", str(_PROGRAM), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            yield
            child.wait()
        finally:
            child.kill()
            child.wait()
    if child.returncode != 0:
        last_line = (log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
        raise ModelLoadError(
            f"{gguf} could not be converted to safetensors (exit code {child.returncode}): {last_line}. "
            f"Make sure that about {source.size * MEMORY_PER_BYTE / 1e9:.1f} GB of memory are free, and try again."
        )
