"""What a folder of long work was begun with, so that nobody goes on in it with something else."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ssd_engine.errors import InvalidRequestError

MadeOf = dict[str, Any]


def claim(folder: Path, made_of: MadeOf) -> bool:
    """Whether the folder is new; it is marked as made of these settings then.

    Raises:
        InvalidRequestError: it was begun with others.
    """
    record = folder / "made_of.json"
    wanted = json.loads(json.dumps(made_of))
    if not record.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = record.with_suffix(".new")
        draft.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, record)  # a kill leaves no half of it
        return True
    begun = json.loads(record.read_text(encoding="utf-8"))
    names = [name for name in {**wanted, **begun} if wanted.get(name) != begun.get(name)]
    if names:
        changes = "; ".join(f"{name} was {begun.get(name)!r} and is {wanted.get(name)!r}" for name in names)
        raise InvalidRequestError(f"{folder} was begun with something else: {changes}. Use that, or another folder")
    return False


def digest(value: Any) -> str:
    """A short mark of a JSON-ready value, or of a model's or an adapter's files."""
    if isinstance(value, Path):
        files = sorted(path for path in value.iterdir() if path.suffix in (".safetensors", ".json"))
        value = [(path.name, _digest_of_file(path)) for path in files]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _digest_of_file(path: Path) -> str:
    """Of all of a small file; of a large one's size and 256 blocks, since other weights differ everywhere."""
    size, block = path.stat().st_size, 2**16  # bytes
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, max(block, size // 256)):
            file.seek(start)
            found.update(file.read(block))
    return found.hexdigest()


def digest_of_source(source: str | None) -> str | None:
    """`digest` of a folder; what is no folder here is told by its name alone."""
    return digest(Path(source)) if source is not None and Path(source).is_dir() else source
