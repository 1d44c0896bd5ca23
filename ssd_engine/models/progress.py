"""How a long step reports itself: as a stage, which a terminal shows as a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tqdm.auto import tqdm

Stage = Callable[[str, int | None], AbstractContextManager[Callable[[int], object]]]
"""Opens a stage from its description and its size in bytes, None where that cannot be known.

Inside it, the callable takes the bytes done since the last call. A stage may stay open while others come and go.
"""


@contextmanager
def tqdm_stage(description: str, size: int | None) -> Iterator[Callable[[int], object]]:
    """A tqdm bar on stderr where that is a terminal; elsewhere nothing is shown."""
    layout = "{desc} ..." if size is None else None
    # disable=None is tqdm's own word for "only on a terminal"
    with tqdm(desc=description, total=size, unit="B", unit_scale=True, bar_format=layout, disable=None) as bar:
        yield bar.update
