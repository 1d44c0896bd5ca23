"""Makes a safetensors copy of a GGUF model, once: it loads in seconds, where the GGUF file takes a minute and more."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_engine.errors import ModelLoadError
from ssd_engine.models.cache import converted_folder, locked
from ssd_engine.models.fetch import fetch
from ssd_engine.models.presets import GGUFSource
from ssd_engine.models.progress import Stage, tqdm_stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MANIFEST = "ssd-manifest.json"
_FORMAT = 1
"""Raised whenever a conversion made by older code must not be used any more."""


def ensure_converted(source: GGUFSource, stage: Stage = tqdm_stage) -> Path:
    """A folder with the model in safetensors (bfloat16) and its tokenizer, fetched and converted on first use.

    The folder appears whole or not at all, and is made anew when it came from other bytes or an older format.
    The GGUF file stays in the cache, so that a new format needs no second download.
    """
    folder = converted_folder(source)
    if is_converted(source):
        return folder
    gguf = fetch(source, stage)
    with locked(folder, source.title, stage):
        if not is_converted(source):  # another process may have been here first
            with (
                tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary,
                stage(f"Converting {source.title} to safetensors, once; this takes a minute or so", None),
            ):
                _convert(source, gguf, Path(temporary) / folder.name)
                shutil.rmtree(folder, ignore_errors=True)
                (Path(temporary) / folder.name).replace(folder)
    return folder


def is_converted(source: GGUFSource) -> bool:
    """Whether the cache holds a conversion of exactly these bytes in today's format."""
    try:
        manifest = json.loads((converted_folder(source) / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest == _manifest(source))


def _manifest(source: GGUFSource) -> dict[str, object]:
    return {"format": _FORMAT, "sha256": source.sha256, "eos_token_ids": list(source.eos_token_ids)}


def _convert(source: GGUFSource, gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with _bars_only_on_a_terminal():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    except (OSError, ValueError, ImportError) as error:
        raise ModelLoadError(f"{gguf} could not be read as a GGUF model: {error}") from error
    model = _without_quantization(loaded)
    if source.eos_token_ids and model.generation_config is not None:
        model.generation_config.eos_token_id = list(source.eos_token_ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _MANIFEST).write_text(json.dumps(_manifest(source)), encoding="utf-8")


def _without_quantization(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that knows nothing of GGUF: what was loaded from GGUF refuses to be saved."""
    import torch

    config = loaded.config
    del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.generation_config = loaded.generation_config
    return model


@contextlib.contextmanager
def _bars_only_on_a_terminal() -> Iterator[None]:
    """transformers draws its bars for GGUF into logs too, and has no switch for it."""
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
        yield
