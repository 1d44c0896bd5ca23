"""Checkpoints of a training: which one to go on from, and what becomes of one that a kill has left unfinished."""

from __future__ import annotations

import json
from pathlib import Path

from ssd_engine.campaigns.work import Reporter
from ssd_engine.errors import InvalidDataError

_STATE = "trainer_state.json"
"""What the Trainer writes last into a checkpoint."""


def last_whole_checkpoint(folder: Path, report: Reporter) -> str | None:
    """The last checkpoint that was written to its end. Later ones, which were not, are renamed and kept.

    Raises:
        InvalidDataError: the last checkpoint cannot be read, which says nothing of what it holds; it is left as it is.
    """
    numbered = (path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal())
    checkpoints = sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")))
    for path in reversed(checkpoints):
        if _is_whole(path):
            return str(path)
        kept = _set_aside(path)
        report.note(f"{path} was not written to its end, so it is not used; it is kept as {kept.name}.")
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        raise InvalidDataError(
            f"{checkpoint} cannot be read: {error}. Nothing in it was changed; once it can be read, --resume goes on "
            "from it, and without it from the checkpoint before"
        ) from error
    return True


def _set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint so that the Trainer neither takes nor removes it."""
    name, number = f"unfinished-{checkpoint.name}", 1
    while (kept := checkpoint.with_name(name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return checkpoint.rename(kept)
